# One image for every role: docker-compose.yml and deploy/kubernetes say which one a container is.
#
# The digest is that of the index for all architectures. Another base, with its own:
#   docker buildx imagetools inspect python:3.13-slim-bookworm      and      --build-arg PYTHON=NAME@sha256:…
ARG PYTHON=python:3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d

FROM ${PYTHON} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/themes
ENV PATH=/opt/themes/bin:$PATH
WORKDIR /src
# What changes rarely first, so that a changed line of ours rebuilds one layer only.
COPY requirements.lock requirements-dev.lock pyproject.toml ./
COPY scripts/extra ./scripts/extra
RUN pip install --require-hashes -r requirements.lock
# Extras of pyproject.toml, as the lock files pin them: --build-arg EXTRAS="postgresql otel parquet xlsx"
ARG EXTRAS=postgresql
RUN for extra in ${EXTRAS}; do python scripts/extra "$extra"; done
COPY README.md LICENSE ./
COPY docs/man ./docs/man
COPY config ./config
COPY tasks ./tasks
COPY workers ./workers
COPY scripts ./scripts
RUN pip install --no-deps --no-build-isolation . && pip uninstall --yes --quiet pip

FROM ${PYTHON}
# A number, so that Kubernetes can see that it is not root.
RUN useradd --uid 10001 --no-create-home --home-dir /tmp themes && install -d -o themes -g themes -m 700 /state
COPY --from=build /opt/themes /opt/themes
ENV PATH=/opt/themes/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp THEMES_STATE_DIR=/state
USER 10001:10001
WORKDIR /tmp
# All that is written, beside /tmp: the root file system may be read-only.
VOLUME /state
# SIGTERM: a worker finishes or gives back what it holds.
STOPSIGNAL SIGTERM
ENTRYPOINT ["themes"]
CMD ["--help"]
