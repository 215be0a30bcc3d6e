// Package check asks the Artifact Registry API what a pull does not say: whether whoever has a token may download from a repository, and what that repository is. It is the whole of the program
// gar-check, which the backend starts when it is asked to check itself, so that no pull carries the weight of the API's library. It knows no identity, no image and no words for people: it is told
// where to look, and tells what it saw.
package check

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	artifactregistry "cloud.google.com/go/artifactregistry/apiv1"
	"cloud.google.com/go/artifactregistry/apiv1/artifactregistrypb"
	"cloud.google.com/go/iam/apiv1/iampb"
	"google.golang.org/api/googleapi"
	"google.golang.org/api/option"

	"github.com/credential-broker/credential-broker/backends/gar/internal/ask"
	"github.com/credential-broker/credential-broker/backends/internal/remote"
)

// maxQuestion bounds a question, in bytes.
const maxQuestion = 1 << 20

// defaultTime is how long there is to answer where the question does not say.
const defaultTime = 20 * time.Second

// Serve reads a question, asks the API, and writes the answer. The error is one of the question or of writing: what the API refuses is part of the answer.
func Serve(ctx context.Context, in io.Reader, out io.Writer) error {
	var q ask.Question
	if err := json.NewDecoder(io.LimitReader(in, maxQuestion)).Decode(&q); err != nil {
		return errors.New("want a question as JSON on standard input, as credential-backend-gar writes it") // the parser's own error could quote the token
	}
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(q.Within, defaultTime))
	defer cancel()
	client, err := newClient(ctx, q)
	if err != nil {
		return fmt.Errorf("make a client of the Artifact Registry API: %w", err)
	}
	defer client.Close()
	return json.NewEncoder(out).Encode(answer(ctx, client, q))
}

// newClient makes a client that speaks REST, which starts sooner than gRPC (docs/decisions/0026). It is given all that the library would otherwise look for in the environment.
func newClient(ctx context.Context, q ask.Question) (*artifactregistry.Client, error) {
	return artifactregistry.NewRESTClient(ctx,
		option.WithHTTPClient(&http.Client{
			Transport:     &way{remote.Transport(q.Proxy), q.Token},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }, // the token would be sent to wherever one points
		}),
		option.WithEndpoint(q.Endpoint),
		option.WithLogger(slog.New(slog.DiscardHandler)), // it would write whole requests
	)
}

// way is the way to the API: with the token, and to answers of a bounded size.
type way struct {
	next  http.RoundTripper
	token string
}

// RoundTrip implements http.RoundTripper.
func (w *way) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+w.token)
	resp, err := w.next.RoundTrip(r)
	if err == nil {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(resp.Body, remote.MaxAnswer), resp.Body}
	}
	return resp, err
}

// permission is what a pull needs.
const permission = "artifactregistry.repositories.downloadArtifacts"

// answer asks everything at once.
func answer(ctx context.Context, client *artifactregistry.Client, q ask.Question) (a ask.Answer) {
	name := "projects/" + q.Project + "/locations/" + q.Location + "/repositories/" + q.Repository
	var calls sync.WaitGroup
	calls.Go(func() {
		got, err := client.TestIamPermissions(ctx, &iampb.TestIamPermissionsRequest{Resource: name, Permissions: []string{permission}})
		a.Permission = ask.Permission{Held: slices.Contains(got.GetPermissions(), permission), Failure: failure(ctx, err)}
	})
	calls.Go(func() {
		got, err := client.GetRepository(ctx, &artifactregistrypb.GetRepositoryRequest{Name: name})
		if a.Repository.Failure = failure(ctx, err); err == nil {
			a.Repository = ask.Repository{Format: got.GetFormat().String(), Mode: got.GetMode().String()}
		}
	})
	if q.Redirection {
		calls.Go(func() {
			got, err := client.GetProjectSettings(ctx, &artifactregistrypb.GetProjectSettingsRequest{Name: "projects/" + q.Project + "/projectSettings"})
			if a.Redirection.Failure = failure(ctx, err); err == nil {
				a.Redirection.State = got.GetLegacyRedirectionState().String()
			}
		})
	}
	calls.Wait()
	return a
}

// failure is what may be told of a call that failed; nil if it did not.
func failure(ctx context.Context, err error) *ask.Failure {
	if err == nil {
		return nil
	}
	if said, ok := errors.AsType[*googleapi.Error](err); ok {
		body := []byte(said.Body)
		return &ask.Failure{Status: said.Code, Code: ask.CodeOf(body), Consumer: consumerIn(body), Date: said.Header.Get("Date")}
	}
	if _, ok := errors.AsType[*url.Error](err); !ok && ctx.Err() == nil { // there was an answer, which the library cannot read
		return &ask.Failure{Status: http.StatusOK}
	}
	err = remote.Unanswered(ctx, err)
	if untrusted, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return &ask.Failure{Text: untrusted.Err.Error(), Untrusted: true}
	}
	return &ask.Failure{Text: err.Error()}
}

// consumerIn is the project, "projects/123456789", in the details of a refusal (https://google.aip.dev/193); empty if there is none, or if it could be something else.
func consumerIn(body []byte) string {
	var answer struct {
		Error struct {
			Details []struct {
				Metadata struct {
					Consumer string `json:"consumer"`
				} `json:"metadata"`
			} `json:"details"`
		} `json:"error"`
	}
	if json.Unmarshal(body, &answer) != nil {
		return ""
	}
	for _, detail := range answer.Error.Details {
		consumer := detail.Metadata.Consumer
		id, ok := strings.CutPrefix(consumer, "projects/")
		if ok && len(id) <= 100 && strings.Trim(id, "abcdefghijklmnopqrstuvwxyz0123456789-.:") == "" {
			return consumer
		}
	}
	return ""
}
