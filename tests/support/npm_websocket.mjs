// npm's ws as a peer: node npm_websocket.mjs FOLDER server, or client URL BYTES CA.
import { createHash, randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const [folder, role, url, bytes, ca] = process.argv.slice(2);
const { WebSocket, WebSocketServer } = createRequire(import.meta.url)(folder);

if (role === "server") {
  const server = new WebSocketServer({ host: "127.0.0.1", port: 0, perMessageDeflate: true }, () =>
    console.log(JSON.stringify({ port: server.address().port })),
  );
  server.on("connection", (socket) => socket.on("message", (data, isBinary) => socket.send(data, { binary: isBinary })));
} else {
  const sent = createHash("sha256"), received = createHash("sha256");
  const socket = new WebSocket(url, ca ? { ca: readFileSync(ca) } : {});
  let left = Number(bytes);
  socket.on("open", () => {
    for (let size = left; size > 0; size -= 100000) {
      const piece = randomBytes(Math.min(size, 100000));
      sent.update(piece);
      socket.send(piece);
    }
  });
  socket.on("message", (data) => {
    received.update(data);
    left -= data.length;
    if (left <= 0) socket.close(1000);
  });
  socket.on("close", (code) =>
    console.log(JSON.stringify({ code, same: sent.digest("hex") === received.digest("hex") })),
  );
  socket.on("error", (error) => console.log(JSON.stringify({ error: error.message })));
}
