// Package awsprogram proves an AWS identity to others, for backends that are started for each pull: by a token that AWS itself issues, or by a signed request that only that identity can have made. It has the
// program aws-identity-token do so, which is installed beside the backend, so that only those pulls carry AWS's SDK that need it. What AWS is asked, and what is said of its answers, is package awsidentity's.
package awsprogram

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/internal/beside"
	"github.com/credential-broker/credential-broker/backends/webidentity"
)

const name = "aws-identity-token"

var program = beside.Program{Name: name, For: "webIdentity.aws"}

// timeout bounds one question, with the program's start and what AWS is given to answer.
const timeout = 12 * time.Second

// Question is what the program reads: what the token is to be that is asked for, or the request that is to be signed.
type Question struct {
	webidentity.AWS
	// Audience is for whom the token is to be.
	Audience string
	// Caller is the request; nil: a token is asked for.
	Caller *CallerIdentity
	// Environ is the environment by which the SDK finds the identity, "NAME=value" each. Keys may be in it, which the program's own would show to others of its user.
	Environ []string
	// Within is how long there is to answer.
	Within time.Duration
}

// Answer is what it prints: a token or a request, or why there is none.
type Answer struct {
	Token   string
	Request *Request
	Refusal *Refusal
}

// Refusal is an error of package backends.
type Refusal struct {
	Kind backends.Kind
	// Field is the setting at fault, below `aws`; empty: none is.
	Field string
	Text  string
}

// source has the program at a path asked.
type source struct {
	webidentity.AWS
	audience string
	path     func() (string, error)
}

// New is for webidentity.Sources. It neither reads nor starts anything.
func New(c webidentity.AWS, audience string) webidentity.Source {
	return &source{c, audience, program.Path}
}

// Token asks anew each time.
func (s *source) Token(ctx context.Context) (webidentity.Token, error) {
	path, err := s.path()
	if err != nil {
		return webidentity.Token{}, backends.Unavailable(err)
	}
	answer, err := ask(ctx, program, path, Question{AWS: s.AWS, Audience: s.audience})
	return webidentity.Token{Value: backends.Secret(answer.Token)}, err
}

// ask has the program at path answer as the identity of this process's environment.
func ask(ctx context.Context, p beside.Program, path string, q Question) (Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	deadline, _ := ctx.Deadline()
	q.Environ, q.Within = os.Environ(), time.Until(deadline)*9/10 // so that it can still say what it waited for
	var answer Answer
	if err := p.Ask(ctx, path, environment(), q, &answer); err != nil {
		return Answer{}, err
	}
	if no := answer.Refusal; no != nil {
		return Answer{}, &backends.Error{Kind: no.Kind, Field: no.Field, Err: errors.New(no.Text)}
	}
	return answer, nil
}

// environment is the program's own, which is none but for what Windows needs for anything.
func environment() []string {
	if root, ok := os.LookupEnv("SYSTEMROOT"); ok {
		return []string{"SYSTEMROOT=" + root}
	}
	return nil
}
