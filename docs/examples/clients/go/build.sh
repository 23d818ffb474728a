#!/bin/sh
# Builds ./score with Debian's packages alone: golang-go golang-google-grpc-dev golang-goprotobuf-dev protobuf-compiler
# protoc-gen-go-1-3. A first argument says where the program goes.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
protos=${PROTOS:-$here/../../../../fpgasim/service/protos}
target=$(realpath "${1:-$here/score}")

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/src/tensorflow" "$work/src/serving"
known=github.com/golang/protobuf/ptypes
types="Mgoogle/protobuf/wrappers.proto=$known/wrappers,Mgoogle/protobuf/any.proto=$known/any,Mtensor.proto=tensorflow"
protoc -I "$protos" --go_out="import_path=tensorflow:$work/src/tensorflow" tensor.proto
protoc -I "$protos" --go_out="plugins=grpc,import_path=serving,$types:$work/src/serving" serving.proto

export GO111MODULE=off GOFLAGS= GOPATH="$work:/usr/share/gocode" GOCACHE="${GOCACHE:-$work/cache}"
go build -o "$target" "$here/score.go"
