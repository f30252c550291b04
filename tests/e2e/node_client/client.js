// A client of lowdimfa's job service that knows nothing but its proto files:
//
//   node client.js submit NAME SPEC.yaml [FILE.py ...]    put a job into the queue
//   node client.js watch JOB [SEQUENCE]                   its events, after a sequence, until its end
//   node client.js stop JOB [now]                         ask it to stop
//   node client.js get JOB
//
// Prints one JSON object per line. Settings come from the environment, as for the command line: LOWDIMFA_COORDINATOR
// (HOST:PORT), LOWDIMFA_TOKEN and LOWDIMFA_CA; and LOWDIMFA_PROTO, the folder proto/ of the project.

'use strict';

const fs = require('node:fs');
const path = require('node:path');
const grpc = require('@grpc/grpc-js');
const loader = require('@grpc/proto-loader');

const proto = process.env.LOWDIMFA_PROTO || path.join(__dirname, '..', '..', '..', 'proto');
const definition = loader.loadSync('lowdimfa/services/rpc/v1/coordinator.proto', {
  includeDirs: [proto],
  enums: String,
  longs: Number,
  oneofs: true,
});
const {Coordinator} = grpc.loadPackageDefinition(definition).lowdimfa.v1;

function connect() {
  const authority = process.env.LOWDIMFA_CA;
  const credentials = authority
    ? grpc.credentials.createSsl(fs.readFileSync(authority))
    : grpc.credentials.createInsecure();
  return new Coordinator(process.env.LOWDIMFA_COORDINATOR || '127.0.0.1:50051', credentials);
}

function metadata() {
  const values = new grpc.Metadata();
  if (process.env.LOWDIMFA_TOKEN) {
    values.set('authorization', `Bearer ${process.env.LOWDIMFA_TOKEN}`);
  }
  return values;
}

function say(object) {
  process.stdout.write(`${JSON.stringify(object)}\n`);
}

/** Makes a unary call; gives its answer, or throws its error. */
function call(client, method, request) {
  return new Promise((resolve, reject) => {
    const deadline = Date.now() + 30_000;
    client[method](request, metadata(), {deadline}, (error, reply) => (error ? reject(error) : resolve(reply)));
  });
}

const commands = {
  async submit(client, name, specification, ...files) {
    say(await call(client, 'submitJob', {
      name,
      specification: fs.readFileSync(specification, 'utf8'),
      files: files.map((file) => ({path: path.basename(file), content: fs.readFileSync(file, 'utf8')})),
    }));
  },

  async watch(client, id, afterSequence = '0') {
    for await (const event of client.watchJob({id, afterSequence: Number(afterSequence)}, metadata())) {
      say(event);
    }
  },

  async stop(client, id, mode = '') {
    say(await call(client, 'stopJob', {id, mode: mode === 'now' ? 'STOP_MODE_NOW' : 'STOP_MODE_GRACEFUL'}));
  },

  async get(client, id) {
    say(await call(client, 'getJob', {id}));
  },
};

async function main([name, ...words]) {
  const command = commands[name];
  if (!command || words.length === 0) {
    process.stderr.write(`usage: node client.js ${Object.keys(commands).join('|')} ...\n`);
    return 2;
  }
  const client = connect();
  try {
    await command(client, ...words);
    return 0;
  } catch (error) {
    if (error.code === undefined || !(error.code in grpc.status)) {
      throw error;
    }
    say({code: grpc.status[error.code], message: error.details});
    return 1;
  } finally {
    client.close();
  }
}

main(process.argv.slice(2)).then((code) => {
  process.exitCode = code;
});
