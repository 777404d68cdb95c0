// Servers that name no address listen on this host only; Portkey's has no option for it.
const net = require("node:net");

const listen = net.Server.prototype.listen;
net.Server.prototype.listen = function (port, ...rest) {
  if (typeof port === "number" && typeof rest[0] !== "string") {
    return listen.call(this, port, "127.0.0.1", ...rest.filter((one) => one !== undefined));
  }
  return listen.call(this, port, ...rest);
};
