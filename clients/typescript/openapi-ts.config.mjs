// The document is that of a running service, or the file that OPENAPI names.
export default {
  input: process.env.OPENAPI ?? "http://127.0.0.1:8080/openapi.json",
  output: { path: "src/generated", importFileExtension: ".js" },
  plugins: ["@hey-api/client-fetch", "@hey-api/typescript", "@hey-api/sdk"],
};
