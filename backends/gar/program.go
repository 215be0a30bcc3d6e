package gar

import (
	"context"
	"os"
	"strings"
	"time"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/gar/internal/ask"
	"github.com/credential-broker/credential-broker/backends/internal/beside"
)

// checkProgram asks Google's API for a check. It is no part of the backend, which each pull starts: the library of that API is larger than all the rest.
var checkProgram = beside.Program{Name: "gar-check", For: "check"}

// checkTime bounds a check that has no deadline.
const checkTime = 20 * time.Second

// checkEnvironment is what of the environment reaches the program: how to reach Google, and whose certificates to take. Windows needs the last one for anything.
var checkEnvironment = []string{"HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR", "SYSTEMROOT"}

// ask has the program answer a question. What it gets, it gets by standard input alone.
func (b *Backend) ask(ctx context.Context, q ask.Question) (ask.Answer, error) {
	path, err := b.program()
	if err != nil {
		return ask.Answer{}, backends.Unavailable(err)
	}
	ctx, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	deadline, _ := ctx.Deadline()
	q.Within = time.Until(deadline) * 9 / 10 // so that it can still say what it waited for
	var env []string
	for _, name := range checkEnvironment {
		if value, ok := os.LookupEnv(name); ok && (b.cfg.Proxy == "" || !strings.EqualFold(name, "HTTPS_PROXY")) { // it may hold a password
			env = append(env, name+"="+value)
		}
	}
	var answer ask.Answer
	err = checkProgram.Ask(ctx, path, env, q, &answer)
	return answer, err
}
