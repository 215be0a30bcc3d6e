// Package broker is the main job: one image in, one answer out. Resolve routes the image to the providers that match it, asks each of them through a Caller,
// and merges what they say. Routing and merging are pure functions; the package knows no process, no socket, no clock
// but the one it is given, and none of the kubelet's documents.
package broker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/credential-broker/credential-broker/broker/config"
	"github.com/credential-broker/credential-broker/proto/secret"
)

// Request is what one image pull asks for.
type Request struct {
	// Image is "host[:port]/path" without tag or digest, as the kubelet writes it.
	Image string
	// Token is the pod's service account token (a JWT), empty where the kubelet sent none (KEP-4412).
	Token secret.Secret
	// Annotations are those of the pod's service account that the kubelet was told to send.
	Annotations map[string]string
}

// Credential is one value for one auth key.
type Credential struct {
	// Key is the kubelet's auth key, as the backend spelled it: "host[:port][/path]", globs in host labels allowed.
	Key      string
	Username string
	Password secret.Secret
	// Expires is when the credential stops working; zero if nobody said.
	Expires time.Time
}

// Answer is what one provider said. No credentials and no error means "none for this image", which is no failure.
type Answer struct {
	Credentials []Credential
	// RegistryWide says that every image of the requested image's registry gets this same answer.
	RegistryWide bool
	// CacheDuration is how long the answer may be reused, where the backend said so; nil where it did not.
	CacheDuration *time.Duration
	// Lease is what the backend needs to renew or revoke this answer; empty where it said nothing. It never leaves the broker.
	Lease secret.Secret
	// Held says that nobody was asked for it: a long-lived Caller had it in memory.
	Held bool
	// Parts are the steps that the answer took, for people who look for the slow one. Filled in for failures too.
	Parts []Part
}

// Part is one step on the way to an answer: "start", "configure", "ask".
type Part struct {
	Name  string        `json:"name"`
	Start time.Duration `json:"start"` // since the provider was asked
	Took  time.Duration `json:"took"`
}

// Caller asks one provider. An error that is not an *Error counts as Unavailable. Call returns once ctx is done, and leaves nothing running that it started
// except what the Caller itself owns.
type Caller interface {
	Call(ctx context.Context, provider *config.Provider, request Request) (Answer, error)
}

// Kind is what a failure means for asking again.
type Kind int

// The kinds of failures, as in proto/backend/v1.
const (
	// Unavailable: nobody can say now; worth asking again at the next pull.
	Unavailable Kind = iota
	// Refused: the answer is no, and will be for a while.
	Refused
	// Misconfigured: somebody has to mend a setting first.
	Misconfigured
)

// String gives the word that logs and `get` print.
func (k Kind) String() string {
	switch k {
	case Refused:
		return "refused"
	case Misconfigured:
		return "misconfigured"
	default:
		return "unavailable"
	}
}

// Lasting says that asking again soon is pointless.
func (k Kind) Lasting() bool { return k == Refused || k == Misconfigured }

// Error is a provider's failure with its kind. Its text holds no secret.
type Error struct {
	Kind Kind
	Err  error
}

func (e *Error) Error() string { return e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// Errorf makes an *Error of the given kind.
func Errorf(kind Kind, format string, args ...any) error {
	return &Error{Kind: kind, Err: fmt.Errorf(format, args...)}
}

// KindOf is the kind of a provider's failure; an unmarked one is Unavailable.
func KindOf(err error) Kind {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}
	return Unavailable
}
