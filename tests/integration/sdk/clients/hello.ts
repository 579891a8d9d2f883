import { registerWorker, Logger } from 'iii-sdk'

const iii = registerWorker(process.env.III_URL ?? 'ws://localhost:49134')

iii.registerFunction('my-worker::hello', async (data) => {
  const logger = new Logger()
  logger.info('Hello from my OCI worker!', { input: data })
  return { message: 'Hello!' }
})
