package main

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	containerregistry "github.com/google/go-containerregistry/pkg/registry"
)

// registry is a container registry on a loopback port that demands a password.
type registry struct {
	host   string // "127.0.0.1:41234"
	server *http.Server
	// logins are the passwords by user name; more are those of users who come and go, nil: of none.
	mu     sync.Mutex
	logins map[string]string
	more   func() map[string]string
}

// password is that of a user, if there is one.
func (r *registry) password(username string) (string, bool) {
	r.mu.Lock()
	password, known := r.logins[username]
	r.mu.Unlock()
	if !known && r.more != nil {
		password, known = r.more()[username]
	}
	return password, known
}

// change gives a user another password.
func (r *registry) change(username string) (password string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.logins[username] = rand.Text()
	return r.logins[username]
}

// login is what a puller shows the registry; the zero value is nobody.
type login struct{ username, password string }

func (l login) authenticator() authn.Authenticator {
	if l == (login{}) {
		return authn.Anonymous
	}
	return &authn.Basic{Username: l.username, Password: l.password}
}

func startRegistry() (*registry, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &registry{
		host:   listener.Addr().String(),
		logins: map[string]string{"pusher": rand.Text(), "node": rand.Text(), "robot": rand.Text()},
	}
	silent := slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
	blobs := containerregistry.New(containerregistry.Logger(silent))
	r.server = &http.Server{ErrorLog: silent, ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		username, password, _ := request.BasicAuth()
		if want, known := r.password(username); !known || subtle.ConstantTimeCompare([]byte(password), []byte(want)) != 1 {
			w.Header().Set("WWW-Authenticate", `Basic realm="demo"`)
			http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"a password is needed"}]}`, http.StatusUnauthorized)
			return
		}
		blobs.ServeHTTP(w, request)
	})}
	go func() { _ = r.server.Serve(listener) }()
	return r, nil
}

func (r *registry) close() error { return r.server.Close() }

// push makes an image of random bytes and stores it under the name given.
func (r *registry) push(ctx context.Context, image string) error {
	reference, err := name.ParseReference(image)
	if err != nil {
		return err
	}
	content, err := random.Image(256<<10, 3)
	if err != nil {
		return err
	}
	as := login{"pusher", r.logins["pusher"]}
	return remote.Write(reference, content, remote.WithAuth(as.authenticator()), remote.WithContext(ctx))
}

// pull fetches the image, checks every digest on the way, and returns how many layers and bytes they were.
func pull(ctx context.Context, image string, as login) (layers int, size int64, err error) {
	reference, err := name.ParseReference(image)
	if err != nil {
		return 0, 0, err
	}
	pulled, err := remote.Image(reference, remote.WithAuth(as.authenticator()), remote.WithContext(ctx))
	if err != nil {
		return 0, 0, err
	}
	if err := validate.Image(pulled); err != nil {
		return 0, 0, err
	}
	all, err := pulled.Layers()
	if err != nil {
		return 0, 0, err
	}
	size, err = sizeOf(all)
	return len(all), size, err
}

func sizeOf(layers []v1.Layer) (int64, error) {
	var sum int64
	for _, layer := range layers {
		size, err := layer.Size()
		if err != nil {
			return 0, err
		}
		sum += size
	}
	return sum, nil
}

// refused is nil if the registry answered 401 to a pull.
func refused(err error) error {
	var answer *transport.Error
	switch {
	case err == nil:
		return errors.New("the pull worked")
	case errors.As(err, &answer) && answer.StatusCode == http.StatusUnauthorized:
		return nil
	default:
		return fmt.Errorf("the pull failed for another reason: %w", err)
	}
}
