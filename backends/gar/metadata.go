package gar

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"cloud.google.com/go/compute/metadata"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/internal/hosts"
)

const (
	// metadataTimeout bounds all questions to the metadata server for one token; it may have to ask Google for it first.
	metadataTimeout = 8 * time.Second
	// nearItsEnd is when a token of the metadata server's is asked for again: the server keeps one until shortly before its end, and a pull takes its time.
	nearItsEnd = time.Minute
)

// metadataServer gives tokens of the machine's own service accounts (https://cloud.google.com/compute/docs/access/authenticate-workloads).
type metadataServer struct {
	*google
	account string
	// tried is where else credentials were looked for.
	tried []string
}

// token asks for a token of this scope. Compute Engine gives one with all the scopes that the machine has, whatever is asked for.
func (m *metadataServer) token(ctx context.Context, scope string) (token, error) {
	ctx, cancel := context.WithTimeout(ctx, metadataTimeout)
	defer cancel()
	t, err := m.ask(ctx, scope)
	for pause := time.Second; err == nil && time.Until(t.expires) < nearItsEnd && pause <= 2*time.Second && m.wait(ctx, pause); pause *= 2 {
		if again, err := m.ask(ctx, scope); err == nil && again.expires.After(t.expires) {
			t = again
		}
	}
	return t, err
}

// scopeStorage is what a machine has that may pull and nothing else; a token that is to read asks for either.
const scopeStorage = "https://www.googleapis.com/auth/devstorage.read_only"

func (m *metadataServer) ask(ctx context.Context, scope string) (token, error) {
	if scope == scopeRead {
		scope += "," + scopeStorage
	}
	asked := m.now()
	body, err := m.get(ctx, "instance/service-accounts/"+m.account+"/token?scopes="+url.QueryEscape(scope))
	if err != nil {
		return token{}, err
	}
	var answer struct {
		AccessToken string `json:"access_token"`
		ExpiresIn   int    `json:"expires_in"`
	}
	if err := json.Unmarshal([]byte(body), &answer); err != nil || answer.AccessToken == "" || answer.ExpiresIn <= 0 {
		return token{}, backends.Unavailable(errors.New("token from Google's metadata server: the answer is none that Google documents"))
	}
	return token{backends.Secret(answer.AccessToken), asked.Add(time.Duration(answer.ExpiresIn) * time.Second)}, nil
}

func (m *metadataServer) universe(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, metadataTimeout)
	defer cancel()
	domain, err := m.get(ctx, "universe/universe-domain")
	if call, ok := errors.AsType[*callError](err); ok && call.status == http.StatusNotFound { // a server from before there were universes
		return defaultUniverse, nil
	}
	if err != nil {
		return "", err
	}
	if domain = strings.TrimSpace(domain); domain == "" {
		return defaultUniverse, nil
	}
	if !hosts.ValidDomain(domain) {
		return "", backends.Unavailable(errors.New("universe domain from Google's metadata server: the answer is no domain"))
	}
	return domain, nil
}

// get asks for a value. Answers of others than Google's server are refused.
func (m *metadataServer) get(ctx context.Context, path string) (string, error) {
	calls := m.calls()
	calls.metadata = true
	client := metadata.NewWithOptions(&metadata.Options{Client: calls.client()})
	body, err := client.GetWithContext(ctx, path)
	if err == nil {
		return body, nil
	}
	return "", calls.explain(ctx, err, "token from Google's metadata server", func(last exchange) string {
		switch {
		case last.absent && len(m.tried) > 0:
			return "no credentials: " + strings.Join(m.tried, ", ") + ", and no metadata server answers, as there would be one on Google Cloud: name a file in credentialsFile, or another identity"
		case last.absent:
			return "is this machine on Google Cloud, and is the metadata server allowed here?"
		case last.notGoogle:
			return "who answers there is not it: on a machine that is not on Google Cloud, name a file in credentialsFile, or another identity"
		case last.status == http.StatusNotFound && m.account == "default":
			return "the machine has no service account: attach one to the instance; on GKE, see to it that the node pool has one"
		case last.status == http.StatusNotFound:
			return fmt.Sprintf("the machine has no service account %q: attach it, or name another", m.account)
		case last.status == http.StatusForbidden:
			return "it refuses: on GKE, see whether the node pool's metadata is concealed; elsewhere, whether GCE_METADATA_HOST names the right server"
		}
		return ""
	})
}
