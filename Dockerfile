# Steadyhand in a container: the service as a user of its own, its data under /data.
# compose.yaml starts it with the sandbox, compose.none.yaml where the host refuses nested namespaces.

FROM debian:bookworm-slim AS build
RUN apt-get update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends ca-certificates python3-venv
COPY pyproject.toml README.md LICENSE /src/
COPY src /src/src
RUN python3 -m venv /build \
    && /build/bin/python -m pip wheel --quiet --no-deps --wheel-dir /wheels /src

FROM debian:bookworm-slim
# git makes the checkouts, bubblewrap seals agents off; the sandbox shows agents this /usr, its python3 included.
RUN apt-get update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        bubblewrap ca-certificates git openssh-client python3-venv \
    && rm -rf /var/lib/apt/lists/*
# What it is made of comes first: after a change of the code alone this is taken from the engine's cache.
# The claude CLI comes along in the claude-agent-sdk wheel.
COPY pyproject.toml constraints.txt /tmp/steadyhand/
RUN python3 -m venv /opt/steadyhand \
    && cd /tmp/steadyhand \
    && python3 -c "import tomllib as t; print(*t.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" > needs.txt \
    && /opt/steadyhand/bin/python -m pip install --quiet --no-cache-dir -c constraints.txt -r needs.txt \
    && rm -r /tmp/steadyhand
COPY --from=build /wheels /tmp/wheels
RUN /opt/steadyhand/bin/python -m pip install --quiet --no-cache-dir --no-deps /tmp/wheels/*.whl \
    && ln -s /opt/steadyhand/bin/steadyhand /usr/local/bin/steadyhand \
    && rm -r /tmp/wheels
RUN groupadd --gid 10001 steadyhand \
    && useradd --uid 10001 --gid 10001 --home-dir /home/steadyhand --create-home --shell /usr/sbin/nologin steadyhand \
    && install -d -o 10001 -g 10001 -m 0755 /data
ENV STEADYHAND_DATA_DIR=/data
VOLUME ["/data"]
USER 10001:10001
WORKDIR /home/steadyhand
EXPOSE 8080
# Whether the process answers; /readyz says whether it takes work, which a draining service does not.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python3", "-c", "import urllib.request as r; r.build_opener(r.ProxyHandler({})).open('http://127.0.0.1:8080/livez', timeout=4)"]
ENTRYPOINT ["steadyhand"]
CMD ["serve", "--host", "0.0.0.0", "--port", "8080"]
