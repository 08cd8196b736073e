# One image for every role: docker-compose.yml says which one a container is.
FROM python:3.11-slim

ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1
WORKDIR /app

# What changes rarely first, so that a changed line of ours rebuilds one layer only.
COPY requirements.lock ./
RUN pip install --require-hashes -r requirements.lock

COPY pyproject.toml README.md LICENSE ./
COPY config ./config
COPY tasks ./tasks
COPY workers ./workers
COPY scripts ./scripts
RUN pip install --no-deps --no-build-isolation . \
    && useradd --create-home themes \
    && mkdir /state && chown themes /state

USER themes
ENV THEMES_STATE_DIR=/state
VOLUME /state
# SIGTERM: a worker finishes or gives back what it holds.
STOPSIGNAL SIGTERM
ENTRYPOINT ["themes"]
CMD ["--help"]
