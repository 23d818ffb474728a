#!/bin/sh
# Puts the clients that tests/clients calls into FOLDER: install.sh FOLDER PYTHON
#   today/  tritonclient, and a command line that asks a server for its messages by reflection
#   then/   TensorFlow Serving's stubs and Azure's clients, with the protobuf of their time
#   node/   docs/examples/clients/node with what it needs
#   score   docs/examples/clients/go
set -eu
folder=$(realpath -m "$1")
python=$2
clients=$(cd "$(dirname "$0")/../../docs/examples/clients" && pwd)

rm -rf "$folder"
"$python" -m venv "$folder/today"
"$folder/today/bin/python" -m pip install --quiet 'protodial==1.1.*' 'tritonclient[grpc]==2.*'
"$python" -m venv "$folder/then"
"$folder/then/bin/python" -m pip install --quiet grpcio numpy 'protobuf==3.20.3' 'tensorflow-serving-client-grpc==2.3.0'
# their dependencies are all of Azure's SDK, of which their clients use nothing
"$folder/then/bin/python" -m pip install --quiet --no-deps \
  'azureml-accel-models==1.62.0' 'azureml-contrib-brainwave==1.0.33'
mkdir "$folder/node"
cp "$clients/node/package.json" "$clients/node/score.js" "$folder/node/"
(cd "$folder/node" && npm install --silent --no-audit --no-fund --no-package-lock --ignore-scripts)
"$clients/go/build.sh" "$folder/score"
