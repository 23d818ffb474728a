// Prints the five best classes of a picture: node score.js HOST:PORT PICTURE [--tls] [--ca FILE] [--key KEY] …
'use strict';

const fs = require('node:fs');
const path = require('node:path');
const { parseArgs } = require('node:util');
const grpc = require('@grpc/grpc-js');
const protoLoader = require('@grpc/proto-loader');

const PROTOS = path.join(__dirname, '../../../../fpgasim/service/protos');
const LARGEST = 64 << 20;

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    tls: { type: 'boolean', default: false },
    ca: { type: 'string' }, // certificates to trust (PEM) instead of the system's
    key: { type: 'string' }, // a key of the service
    service: { type: 'string' }, // which service, where one address has several
    input: { type: 'string', default: 'images' },
    labels: { type: 'string' }, // a file with the name of each class on its line
    protos: { type: 'string', default: PROTOS },
    timeout: { type: 'string', default: '10' }, // seconds, all attempts together
  },
});
if (positionals.length !== 2) {
  console.error('usage: node score.js HOST:PORT PICTURE [--tls] [--ca FILE] [--key KEY] [--service NAME]');
  process.exit(2);
}
const [address, picture] = positionals;

const definition = protoLoader.loadSync('serving.proto', {
  includeDirs: [options.protos],
  keepCase: true,
  longs: Number,
  enums: String,
});
const { PredictionService } = grpc.loadPackageDefinition(definition).tensorflow.serving;

const secure = options.tls || options.ca !== undefined;
const credentials = secure
  ? grpc.credentials.createSsl(options.ca === undefined ? null : fs.readFileSync(options.ca))
  : grpc.credentials.createInsecure();

// Only a server that cannot be reached or is not ready is asked again, and the next replica before the same one.
const client = new PredictionService(address, credentials, {
  'grpc.max_receive_message_length': LARGEST,
  'grpc.max_send_message_length': LARGEST,
  'grpc.per_rpc_retry_buffer_size': LARGEST,
  'grpc.service_config': JSON.stringify({
    loadBalancingConfig: [{ round_robin: {} }],
    methodConfig: [
      {
        name: [{ service: 'tensorflow.serving.PredictionService' }],
        retryPolicy: {
          maxAttempts: 5,
          initialBackoff: '0.1s',
          maxBackoff: '2s',
          backoffMultiplier: 2,
          retryableStatusCodes: ['UNAVAILABLE'],
        },
      },
    ],
  }),
});

const metadata = new grpc.Metadata();
if (options.key !== undefined) metadata.set('authorization', `Bearer ${options.key}`);
if (options.service !== undefined) {
  metadata.set('x-ms-aml-grpc-service-route', `/api/v1/service/${options.service}`);
}

const request = {
  inputs: {
    [options.input]: {
      dtype: 'DT_STRING',
      tensor_shape: { dim: [{ size: 1 }] },
      string_val: [fs.readFileSync(picture)],
    },
  },
};

let requestId = 'none';
const deadline = new Date(Date.now() + 1000 * Number(options.timeout));
const call = client.Predict(request, metadata, { deadline }, (error, reply) => {
  client.close();
  if (error) {
    console.error(`${address} answers ${grpc.status[error.code]}: ${error.details} (request ${requestId})`);
    process.exitCode = 1;
    return;
  }
  const [output] = Object.values(reply.outputs);
  const labels = options.labels === undefined ? [] : fs.readFileSync(options.labels, 'utf8').split('\n');
  Array.from(output.float_val, (score, index) => ({ score, index }))
    .sort((a, b) => b.score - a.score)
    .slice(0, 5)
    .forEach(({ score, index }) => console.log(`${index}\t${score.toFixed(6)}\t${labels[index] ?? ''}`.trimEnd()));
});
call.on('metadata', (initial) => {
  requestId = initial.get('request_id')[0] ?? requestId;
});
