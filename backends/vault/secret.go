package vault

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/dockerconfig"
	"github.com/credential-broker/credential-broker/backends/internal/authkey"
	"github.com/credential-broker/credential-broker/backends/internal/remote"
)

// mount is an engine of Vault's.
type mount struct {
	path   string // without the slash at its end
	engine Engine
}

// within is the rest of a path within the engine.
func (m mount) within(path string) string { return strings.TrimPrefix(path, m.path+"/") }

// apiPath is where a secret is read.
func (m mount) apiPath(path string) string {
	if m.engine == EngineKV2 {
		return m.path + "/data/" + m.within(path)
	}
	return path
}

// mounts remembers engines, which nobody moves every day: by namespace and path.
type mounts struct {
	mu    sync.Mutex
	known map[[2]string]knownMount
}

type knownMount struct {
	mount
	until time.Time
}

// mountsKept is how long.
const mountsKept = 10 * time.Minute

// of is the engine that a path is in, and when that was found out. Engines do not lie within each other.
func (m *mounts) of(namespace, path string, now time.Time) (found mount, at time.Time, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for end := strings.IndexByte(path, '/'); end >= 0; {
		if known, ok := m.known[[2]string{namespace, path[:end]}]; ok && now.Before(known.until) {
			return known.mount, known.until.Add(-mountsKept), true
		}
		next := strings.IndexByte(path[end+1:], '/')
		if next < 0 {
			break
		}
		end += 1 + next
	}
	return mount{}, time.Time{}, false
}

func (m *mounts) remember(namespace string, found mount, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.known == nil {
		m.known = map[[2]string]knownMount{}
	}
	maps.DeleteFunc(m.known, func(_ [2]string, k knownMount) bool { return !now.Before(k.until) })
	m.known[[2]string{namespace, found.path}] = knownMount{found, now.Add(mountsKept)}
}

func (m *mounts) forget(namespace string, found mount) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.known, [2]string{namespace, found.path})
}

// secret gets what an entry has for a request.
func (b *Backend) secret(ctx context.Context, req backends.Request, w who, e *entry, old *loan) (loan, error) {
	path, err := e.path.render(b.value(req, w))
	if err != nil {
		return loan{}, backends.Refused(fmt.Errorf("%s.path: %w", e.field, err))
	}
	key := w.key() + "\x00" + e.Namespace + "\x00" + path + "\x00" + e.ExpiresField
	if b.loans.Has(key, b.server.now()) || isOf(old, key) { // so that it was no KV, and most likely is none
		got, err := b.borrow(ctx, w, e, path, key, old)
		if f, failed := errors.AsType[*failure](err); !failed || !f.elsewhere() {
			return got, err
		}
		b.loans.Forget(key)
	}
	for {
		began := b.server.now()
		m, at, err := b.mount(ctx, w, e, path)
		if err != nil {
			return loan{}, err
		}
		var got loan
		if m.engine == EngineOther {
			got, err = b.borrow(ctx, w, e, path, key, nil)
		} else {
			err = b.with(ctx, w, func(l *login) (err error) {
				got, err = b.read(ctx, w, l, e, m, path)
				return err
			})
		}
		if f, failed := errors.AsType[*failure](err); failed && at.Before(began) && e.mount == "" && f.elsewhere() {
			b.mounts.forget(e.Namespace, m) // it may be another engine by now
			continue
		}
		return got, err
	}
}

// mount finds out which engine a path is in, and says when that was.
func (b *Backend) mount(ctx context.Context, w who, e *entry, path string) (m mount, at time.Time, err error) {
	if e.mount != "" {
		return mount{e.mount, e.Engine}, time.Time{}, nil
	}
	m, at, ok := b.mounts.of(e.Namespace, path, b.server.now())
	if ok {
		return m, at, b.mayChoose(e, m)
	}
	// An identity's requests ask one after the other: for most, the first one's answer is theirs too, and the login that it has is not theirs as well, so that a lease can hang on it.
	m, err = b.lookUps.Get(ctx, w.key()+"\x00"+e.Namespace, time.Time{}, func(ctx context.Context) (m mount, err error) {
		if m, at, ok = b.mounts.of(e.Namespace, path, b.server.now()); ok {
			return m, nil
		}
		at = b.server.now()
		err = b.with(ctx, w, func(l *login) (err error) {
			m, err = b.lookUp(ctx, w, l, e, path)
			return err
		})
		if err == nil {
			b.mounts.remember(e.Namespace, m, at)
		}
		return m, err
	})
	if err != nil {
		return mount{}, time.Time{}, err
	}
	return m, at, b.mayChoose(e, m)
}

// mayChoose refuses a mount that a variable has chosen: which engine is read is for the settings to say.
func (b *Backend) mayChoose(e *entry, m mount) error {
	if strings.HasPrefix(e.path.literal(), m.path+"/") {
		return nil
	}
	return backends.Refused(fmt.Errorf("%s.path: the engine is mounted at %s, which the path has to begin with as it is, without variables", e.field, m.path))
}

// lookUp asks Vault for the engine of a path (https://developer.hashicorp.com/vault/api-docs/system/internal-ui-mounts), as its own CLI does.
func (b *Backend) lookUp(ctx context.Context, w who, l *login, e *entry, path string) (mount, error) {
	defer backends.Span(ctx, "engine of the secret")()
	client, err := b.server.as(l.token, e.Namespace)
	if err != nil {
		return mount{}, err
	}
	got, c, err := b.server.read(ctx, "look up the engine of "+path, client, "sys/internal/ui/mounts/"+path, nil)
	if err != nil || got == nil {
		return mount{}, b.server.explain(ctx, c, err, func(x exchange) string { return b.readAdvice(x, w, e, path, "") })
	}
	at, _ := got.Data["path"].(string)
	kind, _ := got.Data["type"].(string)
	options, _ := got.Data["options"].(map[string]any)
	m := mount{strings.TrimSuffix(at, "/"), EngineOther}
	switch {
	case m.path == "" || !strings.HasPrefix(path, m.path+"/"):
		return mount{}, backends.Unavailable(fmt.Errorf("look up the engine of %s: %w", path, errUndocumented))
	case (kind == "kv" || kind == "generic") && options["version"] == "2":
		m.engine = EngineKV2
	case kind == "kv" || kind == "generic":
		m.engine = EngineKV1
	}
	return m, nil
}

// read reads a secret, and unwraps it if Vault was to wrap it.
func (b *Backend) read(ctx context.Context, w who, l *login, e *entry, m mount, path string) (loan, error) {
	defer backends.Span(ctx, "secret")()
	client, err := b.server.as(l.token, e.Namespace)
	if err != nil {
		return loan{}, err
	}
	if e.WrapTTL > 0 {
		client.SetWrappingLookupFunc(func(_, asked string) string {
			if asked == m.apiPath(path) {
				return strconv.Itoa(int(e.WrapTTL.Seconds())) + "s"
			}
			return ""
		})
	}
	var query map[string][]string
	if m.engine == EngineKV2 && e.Version > 0 {
		query = map[string][]string{"version": {strconv.Itoa(e.Version)}}
	}
	doing := "read " + m.apiPath(path)
	asking := ctx
	if m.engine == EngineOther && (!l.ours || l.batch) { // what is made twice would be known once, and nothing would end the other
		asking = once(ctx)
	}
	asked := b.server.now()
	got, c, err := b.server.read(asking, doing, client, m.apiPath(path), query)
	if err != nil || got == nil && c.exchange().hint == hintNoEngine {
		return loan{}, b.server.explain(ctx, c, err, func(x exchange) string { return b.readAdvice(x, w, e, path, m.apiPath(path)) })
	}
	if got != nil && got.WrapInfo != nil {
		if got, err = b.unwrap(ctx, doing, w, e, path, got.WrapInfo.Token); err != nil {
			return loan{}, err
		}
	}
	if m.engine == EngineKV2 {
		if got, err = versioned(got, doing, path); err != nil {
			return loan{}, err
		}
	}
	if got == nil || got.Data == nil {
		return loan{}, missing(doing, b.missingAdvice(m, path))
	}
	lent := loan{asked: asked, data: got.Data, LeaseID: got.LeaseID, Renewable: got.Renewable, Duration: got.LeaseDuration, Namespace: e.Namespace}
	switch {
	case m.engine == EngineOther && got.LeaseDuration > 0:
		lent.expires = asked.Add(time.Duration(got.LeaseDuration) * time.Second)
	case m.engine == EngineKV1 && got.Data["ttl"] != nil: // how long whoever wrote it wants it to be used (https://developer.hashicorp.com/vault/docs/secrets/kv/kv-v1#ttls)
		lent.refresh = time.Duration(got.LeaseDuration) * time.Second
	}
	if lent.Ends, err = fieldEnd(got.Data, e, asked); err != nil {
		return lent, err
	}
	lent.expires = sooner(lent.expires, lent.Ends)
	return lent, nil
}

// unwrap gets what a wrapping token stands for. That works once.
func (b *Backend) unwrap(ctx context.Context, doing string, w who, e *entry, path, token string) (*api.Secret, error) {
	client, err := b.server.as(backends.Secret(token), e.Namespace)
	if err != nil {
		return nil, err
	}
	got, c, err := b.server.write(once(ctx), doing+", unwrap it", client, "sys/wrapping/unwrap", nil)
	if err != nil || got == nil {
		return nil, b.server.explain(ctx, c, err, func(x exchange) string { return b.readAdvice(x, w, e, path, path) })
	}
	return got, nil
}

// versioned takes the data out of a KV v2 answer.
func versioned(got *api.Secret, doing, path string) (*api.Secret, error) {
	if got == nil {
		return nil, nil //nolint:nilnil // as Vault's library says that there is nothing
	}
	metadata, _ := got.Data["metadata"].(map[string]any)
	data, ok := got.Data["data"].(map[string]any)
	if ok {
		return &api.Secret{Data: data}, nil
	}
	if metadata == nil {
		return nil, nil //nolint:nilnil // the same
	}
	version := fmt.Sprint(metadata["version"])
	if destroyed, _ := metadata["destroyed"].(bool); destroyed {
		return nil, missing(doing, fmt.Sprintf("version %s was destroyed: `vault kv put %s …` writes another", remote.Cut(version), path))
	}
	return nil, missing(doing, fmt.Sprintf("version %s was deleted: `vault kv undelete -versions=%s %s` brings it back", remote.Cut(version), remote.Cut(version), path))
}

// missing is the error of a secret that is not there.
func missing(doing, advice string) error {
	return &failure{exchange{asked: true, status: http.StatusNotFound}, backends.Refused(fmt.Errorf("%s: there is no such secret: %s", doing, advice))}
}

// missingAdvice is what to do about it.
func (b *Backend) missingAdvice(m mount, path string) string {
	switch {
	case m.engine == EngineOther:
		return "is the engine's role, and what comes before it, spelled right?"
	case m.engine == EngineKV2 && (strings.HasPrefix(m.within(path), "data/") || strings.HasPrefix(m.within(path), "metadata/")):
		return "the path is to be without data/ and metadata/ behind the mount, as `vault kv get` takes it"
	}
	return fmt.Sprintf("`vault kv put %s username=… password=…` writes it", path)
}

// fieldEnd is the expiry that a field has, where the settings name one; zero: they do not.
func fieldEnd(data map[string]any, e *entry, asked time.Time) (time.Time, error) {
	if e.ExpiresField == "" {
		return time.Time{}, nil
	}
	text, err := textOf(data, e.field, "expiresField", e.ExpiresField)
	if err != nil {
		return time.Time{}, err
	}
	if at, err := time.Parse(time.RFC3339, text); err == nil {
		return at, nil
	}
	seconds, err := strconv.ParseFloat(text, 64)
	if err != nil || !(seconds >= 0 && seconds <= maxSeconds) { // NaN is neither
		return time.Time{}, backends.Refused(fmt.Errorf("%s.expiresField: the field %q says no time: want Unix seconds, RFC 3339, or the seconds that are left", e.field, e.ExpiresField))
	}
	const billion = 1e9 // of seconds: the year 2001, or 32 years from now
	if seconds < billion {
		return asked.Add(time.Duration(seconds) * time.Second), nil
	}
	return time.Unix(int64(seconds), 0), nil
}

// maxSeconds is the end of the year 9999.
const maxSeconds = 253402300799

// textOf is a field of a secret. Setting is the one that names the field.
func textOf(data map[string]any, entry, setting, name string) (string, error) {
	switch v := data[name].(type) {
	case string:
		return v, nil
	case json.Number:
		return v.String(), nil
	case nil:
		return "", backends.Refused(fmt.Errorf("%s.%s: the secret has no field %q: it has %s", entry, setting, name, fieldsOf(data)))
	default:
		return "", backends.Refused(fmt.Errorf("%s.%s: the secret's field %q is no text", entry, setting, name))
	}
}

// fieldsOf are the names of a secret's fields.
func fieldsOf(data map[string]any) string {
	const most = 20
	names := slices.Sorted(maps.Keys(data))
	more := ""
	if len(names) > most {
		names, more = names[:most], " and more"
	}
	for i, name := range names {
		names[i] = strconv.Quote(remote.Cut(name))
	}
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ") + more
}

// credentials makes what is answered of a secret, under an auth key unless it has its own; wide: every image of the registry gets the same of it.
func (l loan) credentials(ctx context.Context, image backends.Image, key string, e *entry) (found []backends.Credential, wide bool, err error) {
	if e.DockerConfigField != "" {
		found, wide, err = l.dockerConfig(ctx, image, e)
	} else {
		found, wide, err = l.credential(key, e)
	}
	for i := range found {
		found[i].Expires = l.expires
	}
	return found, wide, err
}

func (l loan) credential(key string, e *entry) ([]backends.Credential, bool, error) {
	username := e.Username
	if username == "" {
		var err error
		if username, err = l.username(e); err != nil {
			return nil, false, err
		}
	}
	password, err := textOf(l.data, e.field, "passwordField", e.PasswordField)
	if err != nil {
		return nil, false, err
	}
	if username == "" || password == "" {
		return nil, false, backends.Refused(fmt.Errorf("%s: the secret's user name or password is empty", e.field))
	}
	return []backends.Credential{{Key: key, Username: username, Password: backends.Secret(password)}}, !strings.Contains(key, "/"), nil
}

// authKey is the one that is answered: it has to be for the image, since the broker would drop any other.
func (b *Backend) authKey(req backends.Request, w who, e *entry) (string, error) {
	key, err := e.registry.render(b.value(req, w))
	if err != nil {
		return "", backends.Refused(fmt.Errorf("%s.registry: %w", e.field, err))
	}
	if k, ok := authkey.Parse(key); !ok || !k.Covers(req.Image.Host(), req.Image.Path()) {
		return "", backends.InvalidConfig(e.field+".registry", "%s is no auth key for the image %s: let matchImages route only its images here", remote.Cut(key), remote.Cut(string(req.Image)))
	}
	return key, nil
}

// username is the field of the settings, or else one that is usual.
func (l loan) username(e *entry) (string, error) {
	name := e.UsernameField
	if name == "" {
		name = "username"
		if _, ok := l.data[name]; !ok && l.data["login"] != nil {
			name = "login"
		}
	}
	return textOf(l.data, e.field, "usernameField", name)
}

// dockerConfig is what a whole docker config has for the image.
func (l loan) dockerConfig(ctx context.Context, image backends.Image, e *entry) ([]backends.Credential, bool, error) {
	var content []byte
	switch v := l.data[e.DockerConfigField].(type) {
	case map[string]any:
		var err error
		if content, err = json.Marshal(v); err != nil { // which was JSON
			return nil, false, backends.Refused(fmt.Errorf("%s.dockerConfigField: the secret's field %q is no text", e.field, e.DockerConfigField))
		}
	default:
		text, err := textOf(l.data, e.field, "dockerConfigField", e.DockerConfigField)
		if err != nil {
			return nil, false, err
		}
		content = []byte(text)
	}
	got, err := dockerconfig.Answer(ctx, content, image, "the secret's field "+e.DockerConfigField)
	if err != nil {
		return nil, false, backends.Refused(fmt.Errorf("%s.dockerConfigField: %w", e.field, err))
	}
	return got.Credentials, got.Scope == backends.ScopeRegistry, nil
}
