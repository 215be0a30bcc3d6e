// Package backends is what the author of a backend imports. A backend is an executable whose main calls Serve with a function that makes a Backend from the
// provider's settings; everything else (the protocol, strict decoding of the settings, logging, dying with the broker) is Serve's work. The package knows the
// protocol and no broker.
package backends

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/credential-broker/credential-broker/proto/secret"
)

// Backend gives credentials for one configured provider. Its methods are called from many goroutines at once.
type Backend interface {
	// Credentials answers for one image. No credentials and no error means "none for this image", which is not a failure. An error is marked with Refused,
	// Unavailable or InvalidConfig; an unmarked one counts as Unavailable. It must return soon after ctx is done.
	Credentials(ctx context.Context, req Request) (Response, error)
}

// Checker is implemented by backends that can say whether they could do their job now. The error says why not and what to do about it. A request without an
// image asks for what can be checked without one. Of a backend that is no Checker nobody is told that all is well.
type Checker interface {
	Check(ctx context.Context, req Request) error
}

// Renewer is implemented by backends that can keep an answer alive, or get the next one at less cost than the first. It is asked, by a broker that lives on, for an answer with a
// Lease that is about to expire, possibly in another process than the one that gave the answer. All that is said of Credentials holds for it too; where the lease
// has ended meanwhile, it answers as Credentials would.
type Renewer interface {
	Renew(ctx context.Context, req Request, lease Secret) (Response, error)
}

// Revoker is implemented by backends that can end what an answer with a Lease lent. It is asked, by a broker that lives on, when an operator has the answer forgotten, when nobody can be using it any more
// that is no longer kept, and when that broker ends; possibly in a process that has answered nothing, and not for a lease in whose place Renew has given another. It is no error if there is
// nothing left to end.
type Revoker interface {
	Revoke(ctx context.Context, lease Secret) error
}

// Closer is implemented by backends that have something to put away before the process ends in good order, such as a login; what an answer lent is in use and stays. It is called at most once, when nothing
// else is asked any more, and is given a few seconds; one second in a process that was started for a single answer, or a check, since somebody waits for that. A process may also be killed without it. Where
// the settings say that there is nothing to put away, better make a Backend that is no Closer: each pull without an agent asks it otherwise.
type Closer interface {
	Close(ctx context.Context) error
}

// Request is what a pull asks of a backend.
type Request struct {
	// Image is "host[:port]/path", without tag or digest.
	Image Image
	// Token is the pod's service account token, only where the provider has tokenAttributes and the kubelet sent one (KEP-4412).
	Token Secret
	// Annotations are those of the pod's service account that the provider's tokenAttributes name.
	Annotations map[string]string
}

// Image is an image's name as the kubelet sends it: "host[:port]/path", without tag or digest.
type Image string

// Host is the registry's host with its port if the image names one: all before the first slash.
func (i Image) Host() string {
	host, _, _ := strings.Cut(string(i), "/")
	return host
}

// Path is what follows the host, without the slash between them.
func (i Image) Path() string {
	_, path, _ := strings.Cut(string(i), "/")
	return path
}

// Scope is how far a response holds.
type Scope int

// The scopes.
const (
	// ScopeImage: the response holds for the requested image only. The zero value.
	ScopeImage Scope = iota
	// ScopeRegistry: every image of the requested image's registry (host and port) gets this same response.
	ScopeRegistry
)

// Response is what a backend answers.
type Response struct {
	Scope       Scope
	Credentials []Credential
	// CacheDuration is how long the response may be reused, where the backend knows better than Expires says; zero means not at all, nil that
	// the credentials' expiry or else the provider's defaultCacheDuration decides.
	CacheDuration *time.Duration
	// Lease is what Renew and Revoke need to know this response again, also in another process: any text that the broker is to hand back, at most 16 KiB. Nobody else
	// is shown it. Empty: there is nothing to renew or revoke.
	Lease Secret
}

// Credential is a user name and password for the images that Key covers.
type Credential struct {
	// Key is the kubelet's auth key: "host[:port][/path]", where the labels of the host may be globs. It must match the requested image.
	Key      string
	Username string
	Password Secret
	// Expires is when the credential stops working; the zero time where that is not known.
	Expires time.Time
}

// Secret is a string that cannot be printed by accident: formatting, logging or encoding it gives a mask. string(s) is the value.
type Secret = secret.Secret

// Kind is what a failure means for asking again.
type Kind int

// The kinds of failures.
const (
	// KindUnavailable: nobody can say now; worth asking again.
	KindUnavailable Kind = iota
	// KindRefused: the service said no, and asking again soon is pointless.
	KindRefused
	// KindMisconfigured: a setting has to be mended first.
	KindMisconfigured
)

// Error is a failure with its kind. Made by Refused, Unavailable and InvalidConfig, found with errors.As.
type Error struct {
	Kind  Kind
	Field string // for KindMisconfigured: the path of the field within the settings
	Err   error
}

func (e *Error) Error() string {
	if e.Field != "" {
		return e.Field + ": " + e.Err.Error()
	}
	return e.Err.Error()
}

func (e *Error) Unwrap() error { return e.Err }

// Refused marks an error as the service's final no: access denied, unknown account. No error stays none.
func Refused(err error) error { return marked(KindRefused, err) }

// Unavailable marks an error as passing: a timeout, a throttled or unreachable service. No error stays none.
func Unavailable(err error) error { return marked(KindUnavailable, err) }

func marked(kind Kind, err error) error {
	if err == nil {
		return nil
	}
	return &Error{Kind: kind, Err: err}
}

// InvalidConfig is an error in the provider's settings. Field is the path of the setting within `config`, such as "auth.role"; format and args
// say what is wrong with it and what would be right.
func InvalidConfig(field, format string, args ...any) error {
	return &Error{Kind: KindMisconfigured, Field: field, Err: fmt.Errorf(format, args...)}
}

// kindOf is the kind of any error a backend returns.
func kindOf(err error) (Kind, string) {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind, e.Field
	}
	return KindUnavailable, ""
}
