// The API of the release whose folder this is: what is declared here stays. It has been written by `go test -update`, and never changes.
package backends

import (
	"context"
	"github.com/credential-broker/credential-broker/proto/secret"
	"time"
)

type Backend interface {
	Credentials(ctx context.Context, req Request) (Response, error)
}

type Checker interface {
	Check(ctx context.Context, req Request) error
}

type Closer interface {
	Close(ctx context.Context) error
}

type Credential struct {
	Key      string
	Username string
	Password Secret
	Expires  time.Time
}

type Error struct {
	Kind  Kind
	Field string
	Err   error
}

func (*Error) Error() string { panic(0) }

func (*Error) Unwrap() error { panic(0) }

type Image string

func (Image) Host() string { panic(0) }

func (Image) Path() string { panic(0) }

func InvalidConfig(field string, format string, args ...any) error { panic(0) }

type Kind int

const KindMisconfigured Kind = 2

const KindRefused Kind = 1

const KindUnavailable Kind = 0

func Refused(err error) error { panic(0) }

type Renewer interface {
	Renew(ctx context.Context, req Request, lease Secret) (Response, error)
}

type Request struct {
	Image       Image
	Token       Secret
	Annotations map[string]string
}

type Response struct {
	Scope         Scope
	Credentials   []Credential
	CacheDuration *time.Duration
	Lease         Secret
}

type Revoker interface {
	Revoke(ctx context.Context, lease Secret) error
}

type Scope int

const ScopeImage Scope = 0

const ScopeRegistry Scope = 1

type Secret = secret.Secret

func Serve[C any](name string, version string, build func(ctx context.Context, cfg C) (Backend, error)) {
	panic(0)
}

func Span(ctx context.Context, name string) (end func()) { panic(0) }

func TraceParent(ctx context.Context) string { panic(0) }

func Unavailable(err error) error { panic(0) }
