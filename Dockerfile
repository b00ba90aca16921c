# The page for any host that runs containers:
#   docker build -t fracture . && docker run -p 7860:7860 fracture
FROM python:3.12-slim

WORKDIR /app
COPY requirements-serving.txt .
RUN pip install --no-cache-dir -r requirements-serving.txt
COPY app.py .
COPY fracture_lib fracture_lib
RUN python -m compileall -q app.py fracture_lib

# The user owns no file of the app; uploads go to /tmp.
RUN useradd --create-home --uid 1000 page
USER page

ENV GRADIO_SERVER_NAME=0.0.0.0 PYTHONUNBUFFERED=1
EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:7860/gradio_api/app_id', timeout=8)"]
CMD ["python", "app.py"]
