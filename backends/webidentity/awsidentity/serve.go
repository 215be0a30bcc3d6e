package awsidentity

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/webidentity"
	"github.com/credential-broker/credential-broker/backends/webidentity/awsprogram"
)

// maxQuestion bounds a question, in bytes.
const maxQuestion = 1 << 20

// Serve reads a question, asks AWS or signs what others will, and writes the answer: it is the whole of the program aws-identity-token. The environment becomes the question's. The error is one of the question or of writing:
// what AWS refuses is part of the answer.
func Serve(ctx context.Context, in io.Reader, out io.Writer) error {
	var q awsprogram.Question
	if err := json.NewDecoder(io.LimitReader(in, maxQuestion)).Decode(&q); err != nil {
		return errors.New("want a question as JSON on standard input, as a backend writes it") // the parser's own error could quote a secret
	}
	os.Clearenv()
	for _, variable := range q.Environ {
		name, value, _ := strings.Cut(variable, "=")
		if name == "" { // as Windows has them for its drives
			continue
		}
		if err := os.Setenv(name, value); err != nil {
			return fmt.Errorf("take over the environment: %w", err)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(q.Within, timeout))
	defer cancel()
	return json.NewEncoder(out).Encode(answer(ctx, q))
}

func answer(ctx context.Context, q awsprogram.Question) awsprogram.Answer {
	var answered awsprogram.Answer
	var err error
	if q.Caller != nil {
		answered.Request, err = sign(ctx, *q.Caller)
	} else {
		var t webidentity.Token
		t, err = New(q.AWS, q.Audience).Token(ctx)
		answered.Token = string(t.Value)
	}
	if err == nil {
		return answered
	}
	no := awsprogram.Refusal{Kind: backends.KindUnavailable, Text: err.Error()}
	if e, ok := errors.AsType[*backends.Error](err); ok {
		no = awsprogram.Refusal{Kind: e.Kind, Field: e.Field, Text: e.Err.Error()}
	}
	return awsprogram.Answer{Refusal: &no}
}
