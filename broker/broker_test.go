package broker

import (
	"context"
	"encoding/base64"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/credential-broker/credential-broker/broker/config"
	"github.com/credential-broker/credential-broker/proto/secret"
)

func secretOf(s string) secret.Secret { return secret.Secret(s) }

func jwt(claims string) secret.Secret {
	return secret.Secret("eyJhbGciOiJub25lIn0." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".c2ln")
}

// callerFunc asks a function instead of a backend.
type callerFunc func(ctx context.Context, p *config.Provider, r Request) (Answer, error)

func (f callerFunc) Call(ctx context.Context, p *config.Provider, r Request) (Answer, error) {
	return f(ctx, p, r)
}

func brokerFor(caller Caller, providers ...*config.Provider) *Broker {
	return &Broker{
		Providers: providers, Policy: config.First, Timeout: 5 * time.Second, Caller: caller, Now: time.Now,
		Log: slog.New(slog.DiscardHandler),
	}
}

func TestProvidersAreAskedAtTheSameTime(t *testing.T) {
	arrived := make(chan string)
	everybody := make(chan struct{})
	go func() {
		for range 3 {
			<-arrived
		}
		close(everybody)
	}()
	caller := callerFunc(func(ctx context.Context, p *config.Provider, _ Request) (Answer, error) {
		arrived <- p.Name
		select {
		case <-everybody: // nobody gets here before all three were asked
			return Answer{Credentials: []Credential{{Key: "registry.example/" + p.Name}}}, nil
		case <-ctx.Done():
			return Answer{}, ctx.Err()
		}
	})
	_, err := brokerFor(caller, provider("a", "registry.example"), provider("b", "registry.example"), provider("c", "registry.example")).
		Resolve(t.Context(), Request{Image: "registry.example/abc"})
	if err != nil {
		t.Fatal(err)
	}
}

func TestAProviderThatHangsIsLeftBehindWithItsOwnTimeout(t *testing.T) {
	caller := callerFunc(func(ctx context.Context, p *config.Provider, _ Request) (Answer, error) {
		if p.Name == "hangs" {
			<-ctx.Done()
			return Answer{}, ctx.Err()
		}
		return Answer{Credentials: []Credential{{Key: "registry.example", Username: "u"}}}, nil
	})
	slow := provider("hangs", "registry.example")
	slow.Timeout = 10 * time.Millisecond
	result, err := brokerFor(caller, slow, provider("answers", "registry.example")).Resolve(t.Context(), Request{Image: "registry.example/app"})
	if err != nil {
		t.Fatal(err)
	}
	if len(result.Response.Auth) != 1 || result.Response.Auth[0].Provider != "answers" {
		t.Errorf("auth = %v", result.Response.Auth)
	}
	if result.Response.CacheDuration != 0 || result.Response.CacheKeyType != CacheImage {
		t.Errorf("cached %s for %s beside a failure", result.Response.CacheKeyType, result.Response.CacheDuration)
	}
	if got := result.Slots[0].Err; got == nil || !strings.Contains(got.Error(), "no answer within 10ms") {
		t.Errorf("reason of the one that hangs: %v", got)
	}
}

func TestACallerThatIgnoresItsContextHoldsNobodyUp(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	caller := callerFunc(func(_ context.Context, p *config.Provider, _ Request) (Answer, error) {
		if p.Name == "stuck" {
			<-release
		}
		return Answer{Credentials: []Credential{{Key: "registry.example"}}}, nil
	})
	stuck := provider("stuck", "registry.example")
	stuck.Timeout = time.Millisecond
	result, err := brokerFor(caller, stuck, provider("answers", "registry.example")).Resolve(t.Context(), Request{Image: "registry.example/app"})
	if err != nil || len(result.Response.Auth) != 1 {
		t.Errorf("auth %v, error %v", result.Response.Auth, err)
	}
}

func TestFailureHasALineForEachFailedProvider(t *testing.T) {
	caller := callerFunc(func(_ context.Context, p *config.Provider, _ Request) (Answer, error) {
		if p.Name == "none" {
			return Answer{}, nil
		}
		return Answer{}, Errorf(Refused, "access denied\nto %s", p.Name)
	})
	_, err := brokerFor(caller, provider("a", "registry.example"), provider("none", "registry.example"), provider("b", "registry.example")).
		Resolve(t.Context(), Request{Image: "registry.example/app"})
	if _, ok := errors.AsType[*Failure](err); !ok {
		t.Fatalf("error = %v", err)
	}
	want := "provider \"a\": access denied; to a\nprovider \"b\": access denied; to b"
	if err.Error() != want {
		t.Errorf("error:\n%s\nwant:\n%s", err, want)
	}
}

func TestNoProviderMatchesIsNoFailure(t *testing.T) {
	caller := callerFunc(func(context.Context, *config.Provider, Request) (Answer, error) {
		t.Error("somebody was asked")
		return Answer{}, nil
	})
	result, err := brokerFor(caller, provider("a", "other.example")).Resolve(t.Context(), Request{Image: "registry.example/app"})
	if err != nil || len(result.Response.Auth) != 0 || result.Response.CacheKeyType != CacheImage || result.Response.CacheDuration != 0 {
		t.Errorf("response %+v, error %v", result.Response, err)
	}
}
