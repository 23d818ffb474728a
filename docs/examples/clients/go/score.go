// Score prints the five best classes of a picture: score [-tls] [-ca FILE] [-key KEY] … HOST:PORT PICTURE
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"flag"
	"fmt"
	"io/ioutil"
	"os"
	"sort"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"serving"
	"tensorflow"
)

const largest = 64 << 20

// Only a server that cannot be reached or is not ready is asked again, and the next replica before the same one.
// This release of grpc-go does so where GRPC_GO_RETRY=on is in the environment.
const serviceConfig = `{
  "loadBalancingConfig": [{"round_robin": {}}],
  "methodConfig": [{
    "name": [{"service": "tensorflow.serving.PredictionService"}],
    "retryPolicy": {
      "maxAttempts": 5, "initialBackoff": "0.1s", "maxBackoff": "2s", "backoffMultiplier": 2,
      "retryableStatusCodes": ["UNAVAILABLE"]
    }
  }]
}`

var (
	useTLS  = flag.Bool("tls", false, "speak TLS")
	ca      = flag.String("ca", "", "certificates to trust (PEM) instead of the system's")
	key     = flag.String("key", "", "a key of the service")
	service = flag.String("service", "", "which service, where one address has several")
	input   = flag.String("input", "images", "what the service calls the picture")
	names   = flag.String("labels", "", "a file with the name of each class on its line")
	timeout = flag.Duration("timeout", 10*time.Second, "for all attempts together")
)

func main() {
	flag.Parse()
	if flag.NArg() != 2 {
		fmt.Fprintln(os.Stderr, "usage: score [-tls] [-ca FILE] [-key KEY] [-service NAME] HOST:PORT PICTURE")
		os.Exit(2)
	}
	if err := score(flag.Arg(0), flag.Arg(1)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func score(address, path string) error {
	picture, err := ioutil.ReadFile(path)
	if err != nil {
		return err
	}
	transport, err := transport()
	if err != nil {
		return err
	}
	connection, err := grpc.Dial("dns:///"+address, transport, grpc.WithDefaultServiceConfig(serviceConfig),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(largest), grpc.MaxRetryRPCBufferSize(largest)))
	if err != nil {
		return err
	}
	defer connection.Close()

	ctx, cancel := context.WithTimeout(context.Background(), *timeout)
	defer cancel()
	if *key != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+*key)
	}
	if *service != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "x-ms-aml-grpc-service-route", "/api/v1/service/"+*service)
	}
	request := &serving.PredictRequest{Inputs: map[string]*tensorflow.TensorProto{*input: {
		Dtype:       tensorflow.DataType_DT_STRING,
		TensorShape: &tensorflow.TensorShapeProto{Dim: []*tensorflow.TensorShapeProto_Dim{{Size: 1}}},
		StringVal:   [][]byte{picture},
	}}}
	var initial metadata.MD
	reply, err := serving.NewPredictionServiceClient(connection).Predict(ctx, request, grpc.Header(&initial))
	if err != nil {
		failed := status.Convert(err)
		id := append(initial.Get("request_id"), "none")[0]
		return fmt.Errorf("%s answers %v: %s (request %s)", address, failed.Code(), failed.Message(), id)
	}
	for _, output := range reply.Outputs {
		return show(output.FloatVal)
	}
	return fmt.Errorf("%s answers without an output", address)
}

func transport() (grpc.DialOption, error) {
	if !*useTLS && *ca == "" {
		return grpc.WithInsecure(), nil
	}
	config := &tls.Config{}
	if *ca != "" {
		trusted, err := ioutil.ReadFile(*ca)
		if err != nil {
			return nil, err
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(trusted) {
			return nil, fmt.Errorf("%s holds no certificate in PEM", *ca)
		}
	}
	return grpc.WithTransportCredentials(credentials.NewTLS(config)), nil
}

func show(scores []float32) error {
	var labels []string
	if *names != "" {
		text, err := ioutil.ReadFile(*names)
		if err != nil {
			return err
		}
		labels = strings.Split(string(text), "\n")
	}
	order := make([]int, len(scores))
	for i := range order {
		order[i] = i
	}
	sort.SliceStable(order, func(a, b int) bool { return scores[order[a]] > scores[order[b]] })
	for rank := 0; rank < 5 && rank < len(order); rank++ {
		line := fmt.Sprintf("%d\t%.6f", order[rank], scores[order[rank]])
		if order[rank] < len(labels) {
			line += "\t" + labels[order[rank]]
		}
		fmt.Println(line)
	}
	return nil
}
