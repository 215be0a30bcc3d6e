package awsprogram

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/internal/beside"
	"github.com/credential-broker/credential-broker/proto/secret"
)

// RegionAuto is the region that the SDK finds: the environment's, the shared configuration's, or the instance's.
const RegionAuto = "auto"

// CallerIdentity is a request for sts:GetCallerIdentity that is not sent, but given to somebody who does, and learns so whose it is (https://docs.aws.amazon.com/STS/latest/APIReference/API_GetCallerIdentity.html).
type CallerIdentity struct {
	// Region is the one whose STS the request is for; empty: the global endpoint, which is signed for as us-east-1.
	Region string
	// Endpoint is the URL that it is for, in place of the region's own.
	Endpoint string
	// Header has fields that are signed, so that whoever is told of them in advance knows that it is meant.
	Header map[string]string
}

// Request is a signed one. Whoever has it can send it for a quarter of an hour, and be taken for its signer by those whom it names, or by everybody if it names nobody: it prints as a mask.
type Request struct {
	Method, URL, Body string
	Header            http.Header
}

// Format implements fmt.Formatter.
func (Request) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(secret.Mask)) }

// LogValue implements slog.LogValuer.
func (Request) LogValue() slog.Value { return slog.StringValue(secret.Mask) }

// Sign has the program sign a request as whomever the SDK's default chain finds. what names what needs it, such as "auth.method aws". The error is one of package backends; if a setting is at fault, its field is
// ".region", or none.
func Sign(ctx context.Context, c CallerIdentity, what string) (Request, error) {
	path, err := program.Path()
	if err != nil {
		return Request{}, backends.Unavailable(err)
	}
	return sign(ctx, path, c, what)
}

func sign(ctx context.Context, path string, c CallerIdentity, what string) (Request, error) {
	answer, err := ask(ctx, beside.Program{Name: name, For: what}, path, Question{Caller: &c})
	switch {
	case err != nil:
		return Request{}, err
	case answer.Request == nil:
		return Request{}, backends.Unavailable(errors.New(path + ": it signed nothing: is it from the release that the backend is from?"))
	}
	return *answer.Request, nil
}
