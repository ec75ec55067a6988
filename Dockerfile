# Image of the recorder. The first stage builds; the second contains Python and the environment with the wheel, no source tree.

FROM python:3.11.11-slim-bookworm AS build
WORKDIR /src

# Build tools in an environment of their own, by their hashes. Locked source packages are built with them.
COPY bootstrap.lock ./
RUN python -m venv /opt/build \
 && /opt/build/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes -r bootstrap.lock
COPY runtime.lock ./
RUN /opt/build/bin/pip wheel --no-cache-dir --disable-pip-version-check --no-deps --no-build-isolation --require-hashes \
    --wheel-dir /wheels -r runtime.lock

COPY . .
RUN /opt/build/bin/hatchling build -t wheel -d /wheels
RUN python -m venv --without-pip /opt/recorder \
 && /opt/build/bin/uv pip install --python /opt/recorder/bin/python --offline --no-index --no-deps --compile-bytecode /wheels/*.whl


FROM python:3.11.11-slim-bookworm
# setpriv (util-linux, part of every Debian) ends ffmpeg when the service dies.
RUN setpriv --version \
 && useradd --uid 10001 --user-group --no-create-home --home-dir /var/lib/recorder --shell /usr/sbin/nologin recorder \
 && install -d -m 0700 -o recorder -g recorder /var/lib/recorder /var/spool/recorder /var/lib/simulator
COPY --from=build /opt/recorder /opt/recorder
ENV PATH=/opt/recorder/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    HOST=127.0.0.1 \
    PORT=8080 \
    DATA_DIR=/var/lib/recorder \
    SPOOL_DIR=/var/spool/recorder \
    LOG_FORMAT=json
USER 10001:10001
WORKDIR /var/lib/recorder
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen(f'http://127.0.0.1:{os.environ[\"PORT\"]}/healthz', timeout=3)"]
ENTRYPOINT ["recorder"]
CMD ["serve"]
