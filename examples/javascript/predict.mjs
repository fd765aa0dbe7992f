// Classify an image: node predict.mjs HOST:PORT IMAGE [classifier.proto]
// MODEL names the model if the server has several, TOKEN is the token if it requires one.
// Needs: npm install @grpc/grpc-js @grpc/proto-loader
import { readFileSync } from 'node:fs'
import grpc from '@grpc/grpc-js'
import protoLoader from '@grpc/proto-loader'

const [address, path, proto = 'classifier.proto'] = process.argv.slice(2)
const { evalmode } = grpc.loadPackageDefinition(protoLoader.loadSync(proto, { keepCase: true, longs: Number }))
const client = new evalmode.v1.Classifier(address, grpc.credentials.createInsecure())

const metadata = new grpc.Metadata()
if (process.env.TOKEN) metadata.set('authorization', `Bearer ${process.env.TOKEN}`)

const request = { image: readFileSync(path), model: process.env.MODEL ?? '', top_k: 3 }

client.Predict(request, metadata, { deadline: Date.now() + 10_000 }, (error, reply) => {
  client.close()
  if (error) {
    console.error(`${grpc.status[error.code]}: ${error.details}`)
    process.exitCode = 1
    return
  }
  for (const { label, probability } of reply.scores) console.log(label, probability.toFixed(4))
})
