# CPU: docker build -t distill .
# GPU: docker build -t distill --build-arg INDEX=https://pypi.org/simple .    PyTorch's packages there bring CUDA with them
# docker run --rm -v "$PWD/save:/distill/save" distill                                        the quickstart
# docker run --rm --gpus all -v "$PWD/save:/distill/save" -v "$PWD/data:/distill/data" distill python train_teacher.py --model resnet32x4
ARG BASE=python:3.11-slim
FROM ${BASE}
ARG INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /distill
COPY requirements.txt ./
RUN pip install --no-cache-dir --index-url "${INDEX}" $(grep -E '^torch(vision)?==' requirements.txt) \
    && pip install --no-cache-dir -r requirements.txt
COPY . ./
ENV PYTHON=python
CMD ["bash", "scripts/quickstart.sh"]
