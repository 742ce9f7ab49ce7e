// Sends the secret of a sign-in link, which is in the fragment of the address, and takes it out of the address.
(() => {
  "use strict";
  const form = document.getElementById("open");
  form.elements.secret.value = location.hash.slice(1);
  history.replaceState(null, "", location.pathname);
  if ("auto" in form.dataset && form.elements.secret.value) form.submit();
})();
