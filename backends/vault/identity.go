package vault

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"strings"
	"time"

	"github.com/hashicorp/vault/api"
	"github.com/hashicorp/vault/api/auth/approle"
	"github.com/hashicorp/vault/api/auth/kubernetes"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/internal/files"
	"github.com/credential-broker/credential-broker/backends/internal/remote"
	"github.com/credential-broker/credential-broker/backends/internal/settings"
	"github.com/credential-broker/credential-broker/backends/webidentity"
)

// who is the identity that logs in.
type who struct {
	// pod is the token of the pod that pulls, if that logs in.
	pod backends.Secret
	// claims are what the request's token says, whoever logs in.
	claims webidentity.Claims
	// role is the one that is logged in to; empty: none is named.
	role string
}

// key tells identities apart without holding a secret.
func (w who) key() string {
	if w.pod == "" {
		return "node\x00" + w.role
	}
	sum := sha256.Sum256([]byte(w.pod))
	return "pod\x00" + hex.EncodeToString(sum[:]) + "\x00" + w.role
}

// until is when the identity ends; zero for the node's.
func (w who) until() time.Time {
	if w.pod == "" {
		return time.Time{}
	}
	return w.claims.Expires
}

// who finds out whose identity a request is made with.
func (b *Backend) who(req backends.Request) (who, error) {
	var w who
	auth := &b.cfg.Auth
	switch {
	case auth.pods() && req.Token != "":
		w.pod = req.Token
	case auth.pods() && (auth.PodIdentity == settings.PodIdentityRequire || !auth.node()):
		return who{}, backends.Refused(errors.New("the request carries no service account token, and only pods log in: give the provider tokenAttributes, and the kubelet an entry for its audience; or give the node a token of its own, in auth.tokenFile"))
	}
	if req.Token != "" {
		claims, err := webidentity.ParseClaims(string(req.Token))
		if err != nil && w.pod != "" {
			return who{}, backends.Refused(fmt.Errorf("the pod's service account token: %w", err))
		}
		w.claims = claims
	}
	role, err := b.role.render(b.value(req, w))
	if err != nil {
		return who{}, backends.Refused(fmt.Errorf("auth.role: %w", err))
	}
	w.role = role
	return w, nil
}

// value gives the variables' values for a request.
func (b *Backend) value(req backends.Request, w who) func(part) (string, error) {
	return func(v part) (string, error) {
		switch v.variable {
		case "host":
			return req.Image.Host(), nil
		case "repository":
			return req.Image.Path(), nil
		case "annotation":
			value, ok := req.Annotations[v.key]
			switch {
			case w.pod == "":
				return "", fmt.Errorf("%s is for logins by the pod's own token, and this is the node's", v)
			case !ok:
				return "", fmt.Errorf("the pod's service account has no annotation %s, or the provider's tokenAttributes do not name it", v.key)
			}
			return value, nil
		}
		value := w.claims.Namespace
		if v.variable == "serviceAccount" {
			value = w.claims.ServiceAccount
		}
		if value == "" {
			return "", fmt.Errorf("%s is of a pod's service account token, and the request carries none: give the provider tokenAttributes, with requireServiceAccount", v)
		}
		return value, nil
	}
}

// readSecret reads a file that has a secret and nothing else.
func readSecret(ctx context.Context, field, path string) (backends.Secret, error) {
	content, mode, err := files.Read(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", backends.Unavailable(fmt.Errorf("%s (%s): %w", path, field, err)) // somebody is yet to write it
	}
	if err != nil {
		return "", backends.InvalidConfig(field, "%s: %w", path, err)
	}
	files.WarnIfReadable(ctx, path, mode)
	secret := strings.TrimSpace(string(content))
	if secret == "" || strings.ContainsFunc(secret, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return "", backends.InvalidConfig(field, "%s: want one line of ASCII, and nothing else", path)
	}
	return backends.Secret(secret), nil
}

// method is how w logs in, for Vault's library, and what may be said of it.
func (b *Backend) method(ctx context.Context, w who) (api.AuthMethod, error) {
	auth := &b.cfg.Auth
	switch auth.Method {
	case MethodAppRole:
		return b.appRole(ctx)
	case MethodKubernetes, MethodJWT:
		token, err := b.jwt(ctx, w)
		if err != nil {
			return nil, err
		}
		if auth.Method == MethodKubernetes {
			return kubernetes.NewKubernetesAuth(w.role, kubernetes.WithServiceAccountToken(string(token)), kubernetes.WithMountPath(auth.Mount))
		}
		return b.parameters(w, map[string]any{"jwt": string(token)}), nil
	case MethodAWS:
		parameters, err := auth.AWS.parameters(ctx, w.role)
		return b.parameters(w, parameters), err
	case MethodGCP:
		parameters, err := auth.GCP.parameters(ctx, w.role)
		return b.parameters(w, parameters), err
	case MethodAzure:
		parameters, err := auth.Azure.parameters(ctx, w.role)
		return b.parameters(w, parameters), err
	default: // cert: the connection has it
		return loginParameters{auth.Mount, map[string]any{"name": w.role}}, nil
	}
}

func (b *Backend) appRole(ctx context.Context) (api.AuthMethod, error) {
	auth := &b.cfg.Auth
	role := backends.Secret(auth.RoleID)
	if auth.RoleIDFile != "" {
		var err error
		if role, err = readSecret(ctx, "auth.roleIDFile", auth.RoleIDFile); err != nil {
			return nil, err
		}
	}
	if auth.SecretIDFile == "" { // which Vault's helper does not know
		return loginParameters{auth.Mount, map[string]any{"role_id": string(role)}}, nil
	}
	secret, err := readSecret(ctx, "auth.secretIDFile", auth.SecretIDFile)
	if err != nil {
		return nil, err
	}
	return approle.NewAppRoleAuth(string(role), &approle.SecretID{FromString: string(secret)}, approle.WithMountPath(auth.Mount))
}

// jwt is the token that w logs in with.
func (b *Backend) jwt(ctx context.Context, w who) (backends.Secret, error) {
	switch {
	case w.pod != "":
		return w.pod, nil
	case b.web != nil:
		token, err := b.web.Token(ctx)
		return token.Value, err
	}
	token, err := readSecret(ctx, "auth.tokenFile", b.cfg.Auth.TokenFile)
	if err != nil {
		return "", err
	}
	claims, err := webidentity.ParseClaims(string(token))
	if err != nil {
		return "", backends.InvalidConfig("auth.tokenFile", "%s: %w", b.cfg.Auth.TokenFile, err)
	}
	if now := b.server.now(); !claims.Expires.IsZero() && !now.Before(claims.Expires) {
		return "", backends.Unavailable(fmt.Errorf("%s (auth.tokenFile): the token expired at %s, and this machine's clock says %s: see to it that it is renewed, and that the clock is right",
			b.cfg.Auth.TokenFile, claims.Expires.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339)))
	}
	return token, nil
}

// loginParameters is a login for which Vault has no helper, or one that brings too much along.
type loginParameters struct {
	mount string
	data  map[string]any
}

func (b *Backend) parameters(w who, data map[string]any) loginParameters {
	all := map[string]any{"role": w.role}
	maps.Copy(all, data)
	return loginParameters{b.cfg.Auth.Mount, all}
}

// Login implements api.AuthMethod.
func (l loginParameters) Login(ctx context.Context, client *api.Client) (*api.Secret, error) {
	for name, value := range l.data {
		if value == "" {
			delete(l.data, name)
		}
	}
	return client.Logical().WriteWithContext(ctx, "auth/"+l.mount+"/login", l.data)
}

// alsoSays is what a pod's token says of itself, where that helps to see why it is refused.
func (b *Backend) alsoSays(w who) string {
	if w.pod == "" {
		return ""
	}
	text := fmt.Sprintf("; the pod's token is of %s/%s", remote.Cut(w.claims.Namespace), remote.Cut(w.claims.ServiceAccount))
	if len(w.claims.Audience) > 0 {
		text += ", for " + remote.Cut(fmt.Sprintf("%q", w.claims.Audience))
	}
	return text
}
