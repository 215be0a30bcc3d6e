//go:build !unix

package backends

import (
	"os"
	"os/signal"
)

type streams struct {
	lifeline  *os.File
	handshake *os.File
}

// takeStreams keeps the standard streams as far as Go code goes. What a C library or a child process writes to the inherited standard output still reaches the
// broker as output, which the broker skips, since it is no handshake line.
func takeStreams() (streams, error) {
	s := streams{lifeline: os.Stdin, handshake: os.Stdout}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return s, err
	}
	os.Stdin, os.Stdout = null, os.Stderr
	return s, nil
}

func ignoreInterrupts() { signal.Notify(make(chan os.Signal, 1), os.Interrupt) }

func forbidCoreFiles() {}
