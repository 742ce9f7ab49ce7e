# Steadyhand in a container: the service runs as its own user, its data is under /data.
# compose.yaml starts it with the sandbox. compose.none.yaml is for hosts that refuse nested namespaces.

FROM debian:bookworm-slim AS build
RUN apt-get update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends ca-certificates python3-venv
RUN python3 -m venv /build
COPY pyproject.toml README.md LICENSE /src/
COPY src /src/src
RUN /build/bin/python -m pip wheel --quiet --no-deps --wheel-dir /wheels /src

FROM debian:bookworm-slim
# git makes the checkouts, bubblewrap the sandbox. Agents see this /usr in the sandbox, with its python3.
RUN apt-get update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        bubblewrap ca-certificates git openssh-client python3-venv \
    && rm -rf /var/lib/apt/lists/*
# Dependencies are installed first: after a change of the code alone, the engine takes this step from its cache.
# The claude CLI is in the claude-agent-sdk wheel. A service on SQLite loads nothing of what many nodes need.
COPY pyproject.toml constraints.txt /tmp/steadyhand/
RUN python3 -m venv /opt/steadyhand \
    && cd /tmp/steadyhand \
    && python3 -c "import tomllib as t; p = t.load(open('pyproject.toml', 'rb'))['project']; print(*p['dependencies'], *p['optional-dependencies']['postgres'], sep='\n')" > needs.txt \
    && /opt/steadyhand/bin/python -m pip install --quiet --no-cache-dir -c constraints.txt -r needs.txt \
    && rm -r /tmp/steadyhand
RUN groupadd --gid 10001 steadyhand \
    && useradd --uid 10001 --gid 10001 --home-dir /home/steadyhand --create-home --shell /usr/sbin/nologin steadyhand \
    && install -d -o 10001 -g 10001 -m 0755 /data
COPY --from=build /wheels /tmp/wheels
RUN /opt/steadyhand/bin/python -m pip install --quiet --no-cache-dir --no-deps /tmp/wheels/*.whl \
    && ln -s /opt/steadyhand/bin/steadyhand /usr/local/bin/steadyhand \
    && rm -r /tmp/wheels
ENV STEADYHAND_DATA_DIR=/data
VOLUME ["/data"]
USER 10001:10001
WORKDIR /home/steadyhand
EXPOSE 8080
# /livez checks that the process answers. /readyz also checks that it accepts work; a draining service does not.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python3", "-c", "import urllib.request as r; r.build_opener(r.ProxyHandler({})).open('http://127.0.0.1:8080/livez', timeout=4)"]
ENTRYPOINT ["steadyhand"]
CMD ["serve", "--host", "0.0.0.0", "--port", "8080"]
