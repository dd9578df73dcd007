// A program that uses npm's SAM library, as client or server; see i2p_peers.py, which starts it.
// node npm_peer.mjs FOLDER-OF-PACKAGES client|server SAM-PORT [DESTINATION]

import net from "node:net";
import path from "node:path";
import { pathToFileURL } from "node:url";

const [packages, role, port, destination] = process.argv.slice(2);
const library = path.join(packages, "@diva.exchange", "i2p-sam", "lib", "index.js");
const { createForward, createStream } = await import(pathToFileURL(library));
const sam = { host: "127.0.0.1", portTCP: Number(port) };

// A stream may fail until the router has found the destination; nothing tells when that is.
async function answer() {
  const stream = await createStream({ sam, stream: { destination } });
  try {
    return await new Promise((resolve, reject) => {
      stream.on("data", resolve);
      stream.on("error", reject);
      stream.on("close", () => reject(new Error("closed without an answer")));
      setTimeout(reject, 15000, new Error("no answer"));
      stream.stream(Buffer.from("anybody?"));
    });
  } finally {
    stream.close();
  }
}

if (role === "client") {
  for (let done = false; !done; ) {
    try {
      console.log(`answered ${await answer()}`);
      done = true;
    } catch (error) {
      console.error(`${error}`);
      await new Promise((resolve) => setTimeout(resolve, 1000));
    }
  }
} else {
  const server = net.createServer((connection) => {
    console.error("a stream has come");
    let line = true; // the first one is the destination that connects
    connection.on("error", () => {});
    connection.on("data", (data) => {
      const rest = line ? data.subarray(data.indexOf("\n") + 1) : data;
      line = false;
      if (rest.length > 0) connection.write(rest);
    });
  });
  server.listen(0, "127.0.0.1", async () => {
    const forward = await createForward({ sam, forward: { host: "127.0.0.1", port: server.address().port } });
    forward.on("error", (error) => console.error(`${error}`));
    forward.on("close", () => console.error("a socket of the session has closed"));
    console.log(`serves ${forward.getPublicKey()}`);
  });
}
