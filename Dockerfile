# The image that serves, and that scores offline. docs/deploy.md has its commands, sizes and times.
#   BASE      any image with Python 3.11 or newer and its venv module; a release names one by digest
#   VARIANT   which lock of requirements/ is installed: cpu, gpu or openvino; score, ray or train for jobs
#   MODELS    mounted: /models is empty, a repository is mounted there; baked: exported_models is in it
#   REVISION  the commit, for the label
ARG BASE=python:3.11-slim-bookworm

# checkov:skip=CKV_DOCKER_7:BASE has a tag, and is named by digest in a release
FROM ${BASE} AS tools
WORKDIR /build
# The same wheel, and the same file, whenever it is built.
ENV SOURCE_DATE_EPOCH=315532800 PYTHONHASHSEED=0 PIP_CACHE_DIR=/cache
COPY requirements/tools.txt requirements/inventory.txt requirements/
RUN --mount=type=cache,target=/cache \
    python3 -m venv tools && \
    tools/bin/pip install --require-hashes -r requirements/tools.txt && \
    python3 -m venv inventory && \
    inventory/bin/pip install --require-hashes -r requirements/inventory.txt

# What changes seldom: the dependencies, from hashed wheels only, so that nothing is compiled. Python
# would find the times of its byte code wrong and compile anew at each start, hence `unchecked-hash`.
# PyTorch has a file py312_... that an older Python cannot compile, and does not import.
FROM tools AS dependencies
ARG VARIANT=cpu
COPY requirements/${VARIANT}.txt requirements/
RUN --mount=type=cache,target=/cache \
    python3 -m venv --without-pip /opt/fivecrop && \
    tools/bin/pip --python /opt/fivecrop/bin/python install --no-compile --no-deps \
        --only-binary :all: --require-hashes -r "requirements/${VARIANT}.txt" && \
    python3 -m compileall -q -x '/py312_' --invalidation-mode unchecked-hash /opt/fivecrop/lib

# What changes often: the code, the inventory, the user; below /out as they are below / later.
FROM dependencies AS code
COPY pyproject.toml README.md LICENSE ./
COPY service service
COPY training training
RUN tools/bin/python -m hatchling build -t wheel -d dist && \
    tools/bin/pip --python /opt/fivecrop/bin/python install --no-compile --no-deps --no-index \
        --ignore-installed --prefix /out/opt/fivecrop dist/*.whl && \
    python3 -m compileall -q --invalidation-mode unchecked-hash -s /out -p / /out/opt/fivecrop/lib && \
    mkdir -p /out/etc /out/usr/share/sbom /out/usr/share/doc/fivecrop && \
    cp LICENSE /out/usr/share/doc/fivecrop/ && \
    inventory/bin/cyclonedx-py environment --output-reproducible --pyproject pyproject.toml \
        -o /out/usr/share/sbom/fivecrop.cdx.json /opt/fivecrop/bin/python && \
    inventory/bin/pip-licenses --python /opt/fivecrop/bin/python --from mixed --format plain \
        --order license --output-file /out/usr/share/doc/fivecrop/licences.txt && \
    { cat /etc/passwd; echo "fivecrop:x:10001:10001::/tmp:/usr/sbin/nologin"; } > /out/etc/passwd && \
    { cat /etc/group; echo "fivecrop:x:10001:"; } > /out/etc/group

FROM code AS models
ARG MODELS=mounted
COPY exported_models exported_models
COPY scripts/write-model-inventory .
RUN mkdir /inventory && case "$MODELS" in \
        mounted) mkdir /models ;; \
        baked) cp -R exported_models /models && \
            python3 write-model-inventory /models > /inventory/models.cdx.json ;; \
        *) echo "MODELS is mounted or baked, not $MODELS" >&2 && exit 1 ;; \
    esac

FROM ${BASE}
ARG VARIANT=cpu
ARG REVISION=unknown
LABEL org.opencontainers.image.title="fivecrop" \
      org.opencontainers.image.description="Serves self-proving image classifiers over HTTP and gRPC" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${REVISION}" \
      fivecrop.variant="${VARIANT}"
COPY --from=dependencies /opt/fivecrop /opt/fivecrop
COPY --from=code /out /
COPY --from=models /inventory /usr/share/sbom
COPY --from=models /models /models
# The NVIDIA variables are read by its container runtime, and by nothing where there is none.
ENV PATH=/opt/fivecrop/bin:$PATH \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    ORT_DISABLE_TELEMETRY=1 \
    BENTOML_DO_NOT_TRACK=True \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    FIVECROP_HOST=0.0.0.0 \
    FIVECROP_MODEL_REPOSITORY=/models
USER 10001:10001
WORKDIR /tmp
EXPOSE 3000 3001
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=3 CMD ["fivecrop", "probe"]
# `fivecrop serve` is its own first process: it takes the signals, drains and reaps its workers.
ENTRYPOINT ["fivecrop"]
CMD ["serve"]
