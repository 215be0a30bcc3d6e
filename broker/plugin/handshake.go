package plugin

import (
	"strconv"
	"strings"

	goplugin "github.com/hashicorp/go-plugin"

	backendv1 "github.com/credential-broker/credential-broker/proto/backend/v1"
)

// greeter finds the handshake among the lines that a backend prints on standard output, and hands it to go-plugin, the five fields that are used and nothing else. What
// comes before or after it is output like any other.
type greeter struct {
	child *child
	rest  *stream
	bytes int
	done  bool
}

// count keeps a program that prints without end, and no handshake, from being read until the deadline.
func (g *greeter) count(bytes int) {
	if g.done {
		return
	}
	if g.bytes += bytes; g.bytes > maxBeforeHandshake {
		g.done = true
		g.child.refuse(errorf(backendv1.Error_KIND_MISCONFIGURED, "more than %d bytes on standard output and no go-plugin handshake among them: this is no backend", maxBeforeHandshake))
	}
}

func (g *greeter) line(line []byte, cut bool) {
	if g.done || cut {
		g.rest.line(line, cut)
		return
	}
	before, greeting, ok := findHandshake(string(line))
	if !ok {
		g.rest.line(line, cut)
		return
	}
	if before != "" {
		g.rest.line([]byte(before), false)
	}
	g.done = true
	if err := greeting.check(); err != nil {
		g.child.refuse(err)
		return
	}
	g.child.mu.Lock()
	g.child.greeted = true
	g.child.mu.Unlock()
	_, _ = g.child.handshake.Write([]byte(greeting.String() + "\n"))
	_ = g.child.handshake.Close()
}

// greeting is go-plugin's handshake line.
type greeting struct {
	core, version                       int
	network, address, protocol, tlsCert string
}

func (g greeting) String() string {
	return strings.Join([]string{strconv.Itoa(g.core), strconv.Itoa(g.version), g.network, g.address, g.protocol}, "|")
}

// check says what a backend's author or its user can do about a handshake that does not fit. go-plugin would check the same, except for the certificate: one that it did not ask for
// brings it down.
func (g greeting) check() error {
	switch {
	case g.core != goplugin.CoreProtocolVersion:
		return errorf(backendv1.Error_KIND_MISCONFIGURED, "the backend speaks go-plugin's core protocol %d, the broker %d: rebuild it with go-plugin 1.x", g.core, goplugin.CoreProtocolVersion)
	case g.version != backendv1.ProtocolVersion:
		return errorf(backendv1.Error_KIND_MISCONFIGURED, "the backend speaks version %d of the backend protocol, this broker version %d: install the backend that goes with this broker",
			g.version, backendv1.ProtocolVersion)
	case g.protocol != string(goplugin.ProtocolGRPC):
		return errorf(backendv1.Error_KIND_MISCONFIGURED, "the backend serves %s, the broker speaks grpc: rebuild it with a gRPC server", quoted(g.protocol))
	case g.tlsCert != "":
		return errorf(backendv1.Error_KIND_MISCONFIGURED, "the backend serves TLS, which the broker does not ask for: remove its TLSProvider")
	}
	return nil
}

// findHandshake looks for a handshake line: CORE|VERSION|NETWORK|ADDRESS[|PROTOCOL[|CERTIFICATE…]]. It may stand behind text that somebody printed without ending the line.
func findHandshake(line string) (before string, g greeting, ok bool) {
	line = strings.TrimSpace(line)
	if g, ok = parseHandshake(line); ok {
		return "", g, true
	}
	for i := range len(line) {
		if strings.HasPrefix(line[i:], strconv.Itoa(goplugin.CoreProtocolVersion)+"|") {
			if g, ok = parseHandshake(line[i:]); ok {
				return line[:i], g, true
			}
		}
	}
	return "", greeting{}, false
}

func parseHandshake(line string) (g greeting, ok bool) {
	fields := strings.SplitN(line, "|", 7)
	if len(fields) < 4 || fields[2] != "unix" && fields[2] != "tcp" {
		return g, false
	}
	var err1, err2 error
	g.core, err1 = strconv.Atoi(fields[0])
	g.version, err2 = strconv.Atoi(fields[1])
	if err1 != nil || err2 != nil {
		return g, false
	}
	g.network, g.address, g.protocol = fields[2], fields[3], string(goplugin.ProtocolNetRPC) // which go-plugin takes where no protocol is named
	if len(fields) > 4 {
		g.protocol = fields[4]
	}
	if len(fields) > 5 {
		g.tlsCert = fields[5]
	}
	return g, true
}
