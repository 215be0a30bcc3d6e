package gar

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"cloud.google.com/go/auth"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/internal/remote"
	"github.com/credential-broker/credential-broker/backends/internal/settings"
	"github.com/credential-broker/credential-broker/backends/webidentity"
)

// The annotations of a service account that GKE knows (https://cloud.google.com/kubernetes-engine/docs/how-to/workload-identity).
const (
	// pullAnnotation says that the service account's pods pull with an identity of their own. Google's provider reads the same.
	pullAnnotation = "iam.gke.io/enable-wi-image-pull"
	// accountAnnotation names the Google service account that the pods act as.
	accountAnnotation = "iam.gke.io/gcp-service-account"
)

// token is an OAuth access token.
type token struct {
	value   backends.Secret
	expires time.Time
}

// who is the identity whose token is asked for.
type who struct {
	// pod is the token of the pod that pulls, if the pod's identity is used; audience is what Google's STS is told of whose pool takes it.
	pod      backends.Secret
	audience string
	// account is the service account that is impersonated by the pod or the node; its address is empty where they ask for themselves.
	account account
	// until is when the pod's token expires, by what it says; zero for the node.
	until time.Time
}

// key tells identities apart without holding a secret.
func (w who) key() string {
	as := fmt.Sprintf("%q", w.account)
	if w.pod == "" {
		return "node " + as
	}
	sum := sha256.Sum256([]byte(w.pod))
	return "pod " + hex.EncodeToString(sum[:]) + " " + w.audience + " " + as
}

// who finds out whose identity a request is made with.
func (b *Backend) who(req backends.Request, reg registry) (who, error) {
	node := who{account: b.cfg.accountFor(reg.project)}
	asked := req.Annotations[pullAnnotation] == "true" || b.cfg.PodWorkloadIdentityProvider != "" || b.cfg.PodIdentity == settings.PodIdentityRequire
	switch {
	case b.cfg.PodIdentity == settings.PodIdentityOff:
		return node, nil
	case req.Token == "" && b.cfg.PodIdentity == settings.PodIdentityRequire:
		return who{}, backends.Refused(errors.New("podIdentity is Require, and the request carries no service account token: give the provider tokenAttributes, and the kubelet an entry for its audience"))
	case req.Token == "" || !asked:
		return node, nil
	}
	claims, err := webidentity.ParseClaims(string(req.Token))
	if err != nil {
		return who{}, backends.Refused(fmt.Errorf("the pod's service account token: %w", err))
	}
	pod := who{pod: req.Token, until: claims.Expires, account: account{email: req.Annotations[accountAnnotation]}}
	if pod.account.email != "" && !validEmail(pod.account.email) {
		return who{}, backends.Refused(fmt.Errorf("the annotation %s is %q, which is no address of a service account: want one such as puller@my-project.iam.gserviceaccount.com", accountAnnotation, remote.Cut(pod.account.email)))
	}
	if provider := b.cfg.PodWorkloadIdentityProvider; provider != "" {
		pod.audience = providerAudience(provider)
		return pod, nil
	}
	project, ok := clusterProject(claims.Issuer)
	if !ok {
		return who{}, backends.Refused(fmt.Errorf("the pod's service account token is of issuer %q, which is no GKE cluster: name the provider of the pool that takes it in podWorkloadIdentityProvider", remote.Cut(claims.Issuer)))
	}
	pod.audience = "identitynamespace:" + project + ".svc.id.goog:" + claims.Issuer
	return pod, nil
}

// providerAudience is a provider's full resource name, by which STS knows it.
func providerAudience(provider string) string { return "//iam.googleapis.com/" + provider }

// clusterProject is the project of a GKE cluster, by the issuer of its tokens.
func clusterProject(issuer string) (project string, ok bool) {
	rest, ok := strings.CutPrefix(issuer, "https://container.googleapis.com/v1/projects/")
	if !ok {
		return "", false
	}
	parts := strings.Split(rest, "/")
	return parts[0], len(parts) == 5 && validProject(parts[0]) && (parts[1] == "locations" || parts[1] == "zones") && validName(parts[2]) && parts[3] == "clusters" && validName(parts[4])
}

// The scopes of Google's APIs. A registry's token may read and nothing else; impersonating is an API of its own, which wants the first.
const (
	scopeAll  = "https://www.googleapis.com/auth/cloud-platform"
	scopeRead = "https://www.googleapis.com/auth/cloud-platform.read-only"
)

// granted is what Google's library got, if it is a token at all: it takes an answer without one as it is.
func granted(t *auth.Token, doing string, now time.Time) (token, error) {
	if t.Value == "" || !t.Expiry.After(now) {
		return token{}, backends.Unavailable(fmt.Errorf("%s: %w", doing, errUndocumented))
	}
	return token{backends.Secret(t.Value), t.Expiry}, nil
}

// source is where tokens of one identity come from. It keeps nothing: what is exchanged meanwhile, a file for instance, is seen when the next token is asked for.
type source interface {
	// token asks for a token of this scope.
	token(ctx context.Context, scope string) (token, error)
	// universe is the domain of the APIs that take such a token, as far as the source says.
	universe(ctx context.Context) (string, error)
	// member is who that is, for a check.
	member(ctx context.Context) member
}

// token gets a token of w.
func (g *google) token(ctx context.Context, w who) (token, error) {
	from, err := g.source(ctx, w)
	if err != nil {
		return token{}, err
	}
	scope := scopeRead
	if w.account.email != "" {
		scope = scopeAll
	}
	t, err := from.token(ctx, scope)
	if err != nil {
		return token{}, err
	}
	// Another universe's token means nothing to a registry of this one, and is none of its business.
	if theirs, err := from.universe(ctx); err != nil {
		return token{}, err
	} else if theirs != g.universe() {
		return token{}, backends.InvalidConfig("universeDomain", "the credentials are of universe %s, and the registries' tokens of %s: use other credentials, or set universeDomain and hosts", remote.Cut(theirs), g.universe())
	}
	if w.account.email == "" {
		return t, nil
	}
	return g.impersonate(ctx, t, w.account)
}

// universe is the domain of the APIs that are asked.
func (g *google) universe() string { return cmp.Or(g.cfg.UniverseDomain, defaultUniverse) }

// source is where w's own tokens come from.
func (g *google) source(ctx context.Context, w who) (source, error) {
	c := g.cfg
	switch {
	case w.pod != "":
		return &federation{google: g, audience: w.audience, subject: podToken(w.pod), of: "the pod's service account token"}, nil
	case c.ServiceAccount != "":
		return &metadataServer{google: g, account: c.ServiceAccount}, nil
	case g.web != nil:
		return &federation{google: g, audience: providerAudience(c.WorkloadIdentityProvider), subject: webToken{g.web}, of: "the token from " + g.web.String()}, nil
	case c.AWS:
		return &federation{google: g, audience: providerAudience(c.WorkloadIdentityProvider), aws: true, of: "the AWS identity"}, nil
	case c.CredentialsFile != "":
		return g.openFile(ctx, c.CredentialsFile, "credentialsFile")
	}
	return g.applicationDefault(ctx)
}

// applicationDefault follows Application Default Credentials (https://cloud.google.com/docs/authentication/application-default-credentials): a file of the environment, gcloud's, and then the machine's own
// identity.
func (g *google) applicationDefault(ctx context.Context) (source, error) {
	const variable = "GOOGLE_APPLICATION_CREDENTIALS"
	if path := os.Getenv(variable); path != "" {
		return g.openFile(ctx, path, variable)
	}
	tried := []string{variable + " is not set (or not named in inheritEnv)"}
	if path := wellKnownFile(); path == "" {
		tried = append(tried, "there is no home directory with a file of gcloud's")
	} else if _, err := os.Stat(path); err == nil {
		slog.DebugContext(ctx, "credentials of gcloud's are used", "file", path)
		return g.openFile(ctx, path, "gcloud")
	} else if !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) { // a home such as /dev/null
		return nil, backends.InvalidConfig("credentialsFile", "looking for gcloud's credentials: %w", err)
	} else {
		tried = append(tried, "there is no file "+path)
	}
	return &metadataServer{google: g, account: "default", tried: tried}, nil
}

// wellKnownFile is where gcloud keeps a user's Application Default Credentials.
func wellKnownFile() string { return gcloudFile("application_default_credentials.json") }

// gcloudFile is where gcloud keeps a file of this name; empty: there is no home.
func gcloudFile(name string) string {
	if isWindows {
		if dir := os.Getenv("APPDATA"); dir != "" {
			return filepath.Join(dir, "gcloud", name)
		}
		return ""
	}
	if home, err := os.UserHomeDir(); err == nil && filepath.IsAbs(home) {
		return filepath.Join(home, ".config", "gcloud", name)
	}
	return ""
}
