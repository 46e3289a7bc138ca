# The same steps as `make`: a wheel with the compiled hot path, then a small image that runs it as nobody.
FROM python:3.13-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml setup.py README.md LICENSE ./
COPY proxy proxy
COPY tlscache tlscache
COPY routing routing
COPY loadtests loadtests
RUN python -m venv /opt/onetrip && /opt/onetrip/bin/pip install --no-cache-dir .

FROM python:3.13-slim
COPY --from=build /opt/onetrip /opt/onetrip
ENV PATH=/opt/onetrip/bin:$PATH PYTHONDONTWRITEBYTECODE=1
# A numeric user, so that Kubernetes' runAsNonRoot can check it. Works with a read-only root: mount /var/lib/onetrip for `sessions`.
USER 65532:65532
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=15s CMD ["onetrip", "healthcheck"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["onetrip"]
CMD ["serve", "/etc/onetrip/onetrip.yaml"]
