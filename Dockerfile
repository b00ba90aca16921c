# The page for any host that runs containers; GRADIO_SERVER_PORT chooses another port.
#   docker build -t fracture . && docker run -p 7860:7860 fracture
# Podman needs `--format docker` to keep the health check.
FROM python:3.12-slim

WORKDIR /app
COPY requirements-serving.txt .
RUN pip install --no-cache-dir --root-user-action=ignore --disable-pip-version-check -r requirements-serving.txt
COPY app.py .
COPY LICENSE .
COPY fracture_lib fracture_lib
# A checkout with a strict umask has files that only their owner may read.
RUN find . -not -perm -004 -exec chmod a+rX {} + && python -m compileall -q app.py fracture_lib

# The user owns no file of the app; uploads go to /tmp. A number, as Kubernetes cannot tell what a name may do.
RUN useradd --create-home --uid 1000 page
USER 1000

# The health check must not go through a proxy of the host.
ENV GRADIO_SERVER_NAME=0.0.0.0 GRADIO_SERVER_PORT=7860 no_proxy=localhost,127.0.0.1 PYTHONUNBUFFERED=1
EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s \
    CMD ["python", "-c", "import os; from urllib.request import urlopen; urlopen(f'http://127.0.0.1:{os.environ[\"GRADIO_SERVER_PORT\"]}/gradio_api/app_id', timeout=8)"]
CMD ["python", "app.py"]
