package cloud

import (
	"cmp"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// Issuer is an OIDC issuer with discovery document and key set under its real name (https://openid.net/specs/openid-connect-discovery-1_0.html).
type Issuer struct {
	c   *Cloud
	url string

	mu        sync.Mutex
	algorithm jose.SignatureAlgorithm                     // that Token signs by
	signing   map[jose.SignatureAlgorithm]jose.JSONWebKey // that it signs with
	keys      jose.JSONWebKeySet                          // that it publishes
}

// AddIssuer makes an issuer, or gives the one that is there. The URL is https; a path is fine.
func (c *Cloud) AddIssuer(issuerURL string) *Issuer { return c.addIssuer(issuerURL, nil) }

// addIssuer is AddIssuer for an issuer that signs with the key of another one, unless that is nil.
func (c *Cloud) addIssuer(issuerURL string, like *Issuer) *Issuer {
	c.mu.Lock()
	i := c.issuers[issuerURL]
	u, err := url.Parse(issuerURL)
	if err != nil || u.Scheme != "https" || u.Host == "" {
		c.mu.Unlock()
		panic("an issuer's URL is https://…, not " + issuerURL)
	}
	first := c.entra.authorities[u.Host] == nil // which publishes its tenants' keys itself, and other issuers' too
	for known := range c.issuers {
		if k, err := url.Parse(known); err == nil && k.Host == u.Host {
			first = false
		}
	}
	if i == nil {
		if i = c.newIssuer(issuerURL, len(c.issuers)+1); like != nil {
			like.mu.Lock()
			i.algorithm, i.signing, i.keys.Keys = like.algorithm, maps.Clone(like.signing), slices.Clone(like.keys.Keys)
			like.mu.Unlock()
		}
		c.issuers[issuerURL] = i
	}
	c.mu.Unlock()
	if first {
		c.handle(u.Host, "issuer", http.HandlerFunc(c.serveIssuers))
	}
	return i
}

// newIssuer is an issuer with the nth of the first keys. Azure's registries have number 0.
func (c *Cloud) newIssuer(name string, n int) *Issuer {
	i := &Issuer{c: c, url: name, signing: map[jose.SignatureAlgorithm]jose.JSONWebKey{}}
	i.use(firstKeys.at(n), jose.RS256)
	return i
}

// firstKeys are the keys that issuers begin with, one for each issuer of a cloud. They are made once in a process, since that takes longer than all else that a cloud does.
var firstKeys rsaKeys

type rsaKeys struct {
	mu   sync.Mutex
	made []*rsa.PrivateKey
}

func (k *rsaKeys) at(n int) *rsa.PrivateKey {
	k.mu.Lock()
	defer k.mu.Unlock()
	for len(k.made) <= n {
		k.made = append(k.made, newRSAKey())
	}
	return k.made[n]
}

func newRSAKey() *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return key
}

// URL is the issuer's, as in iss.
func (i *Issuer) URL() string { return i.url }

// Rotate makes a new RSA key, signs with it from now on, and goes on publishing the old ones.
func (i *Issuer) Rotate() { i.use(newRSAKey(), jose.RS256) }

// UseES256 makes a P-256 key and signs with it from now on.
func (i *Issuer) UseES256() {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	i.use(key, jose.ES256)
}

// alsoES384 makes a P-384 key beside the one that it signs with, for those who ask for a token that is signed by it.
func (i *Issuer) alsoES384() {
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		panic(err)
	}
	i.publish(key, jose.ES384)
}

func (i *Issuer) use(key any, algorithm jose.SignatureAlgorithm) {
	i.publish(key, algorithm)
	i.mu.Lock()
	defer i.mu.Unlock()
	i.algorithm = algorithm
}

func (i *Issuer) publish(key any, algorithm jose.SignatureAlgorithm) {
	private := jose.JSONWebKey{Key: key, KeyID: random(16)}
	public := private.Public()
	public.Algorithm, public.Use = string(algorithm), "sig"
	i.mu.Lock()
	defer i.mu.Unlock()
	i.signing[algorithm] = private
	i.keys.Keys = append(i.keys.Keys, public)
}

// published are the keys that it publishes.
func (i *Issuer) published() jose.JSONWebKeySet {
	i.mu.Lock()
	defer i.mu.Unlock()
	return jose.JSONWebKeySet{Keys: slices.Clone(i.keys.Keys)}
}

// ForgetKeys publishes no key any more, so that no token of this issuer can be verified until it makes a new one.
func (i *Issuer) ForgetKeys() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.keys.Keys = nil
}

// Token is a JWT signed by the issuer (RS256). iss, iat and exp (an hour, by the cloud's clock) are filled in unless claims has them; a nil value leaves a claim out.
func (i *Issuer) Token(claims map[string]any) string {
	now := i.c.Now()
	all := map[string]any{"iss": i.url, "iat": now.Unix(), "exp": now.Add(time.Hour).Unix()}
	maps.Copy(all, claims)
	maps.DeleteFunc(all, func(_ string, v any) bool { return v == nil })
	payload, err := json.Marshal(all)
	if err != nil {
		panic(err)
	}
	i.mu.Lock()
	algorithm := i.algorithm
	i.mu.Unlock()
	return i.sign(payload, algorithm)
}

// sign makes a JWT of the claims.
func (i *Issuer) sign(payload []byte, algorithm jose.SignatureAlgorithm) string {
	i.mu.Lock()
	defer i.mu.Unlock()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: algorithm, Key: i.signing[algorithm]}, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		panic(err)
	}
	signed, err := signer.Sign(payload)
	if err != nil {
		panic(err)
	}
	token, err := signed.CompactSerialize()
	if err != nil {
		panic(err)
	}
	i.c.secrets.add(token)
	return token
}

// serveIssuers answers for every issuer of a host.
func (c *Cloud) serveIssuers(w http.ResponseWriter, r *http.Request) {
	if c.faulty(w, r, "issuer", entryOf(r).name(), func(f Fault) { http.Error(w, f.Code, cmp.Or(f.Status, http.StatusServiceUnavailable)) }) {
		return
	}
	address := "https://" + hostOf(r.Host) + r.URL.Path
	if base, ok := strings.CutSuffix(address, "/.well-known/openid-configuration"); ok {
		if i := c.issuer(base); i != nil {
			writeJSON(w, http.StatusOK, map[string]any{
				"issuer": i.url, "jwks_uri": strings.TrimSuffix(i.url, "/") + "/.well-known/jwks.json", "response_types_supported": []string{"id_token"},
				"subject_types_supported": []string{"public"}, "id_token_signing_alg_values_supported": []string{"RS256", "ES256", "ES384"},
			})
			return
		}
	}
	if base, ok := strings.CutSuffix(address, "/.well-known/jwks.json"); ok {
		if i := c.issuer(base); i != nil {
			writeJSON(w, http.StatusOK, i.published())
			return
		}
	}
	http.NotFound(w, r)
}

// issuer finds an issuer by its URL, with or without a slash at the end.
func (c *Cloud) issuer(base string) *Issuer {
	c.mu.Lock()
	defer c.mu.Unlock()
	if i := c.issuers[base]; i != nil {
		return i
	}
	return c.issuers[base+"/"]
}

// Errors of verifyToken, for each service to put in its own words.
var (
	errNotAToken       = errors.New("not a JWT")
	errIssuerSilent    = errors.New("the issuer cannot be reached")
	errNoKey           = errors.New("the issuer publishes no such key")
	errWrongSignature  = errors.New("the signature is wrong")
	errIssuerDisagrees = errors.New("the discovery document is of another issuer")
)

// parseToken takes what clouds take: a signed token in the compact form (RFC 7515, section 7.1).
func parseToken(token string) (*jose.JSONWebSignature, error) {
	return jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.RS256, jose.RS384, jose.RS512, jose.ES256, jose.ES384, jose.ES512})
}

// Keys are the public keys that the issuer publishes.
func (i *Issuer) Keys() jose.JSONWebKeySet { return i.published() }

// Verify verifies the signature of a token of this issuer, by the keys that it publishes, and gives the token's claims. Its times are the caller's to judge, by Now.
func (i *Issuer) Verify(token string) (claims map[string]any, err error) { return i.verify(token) }

// Now is the time by which the issuer signs: the cloud's.
func (i *Issuer) Now() time.Time { return i.c.Now() }

// verifyToken verifies a JWT's signature with the key that its issuer publishes, and gives its claims. Times and audience are the caller's to judge.
func (c *Cloud) verifyToken(token, issuer string) (map[string]any, error) {
	parsed, err := parseToken(token)
	if err != nil {
		return nil, errNotAToken
	}
	var discovery struct {
		Issuer string `json:"issuer"`
		JWKS   string `json:"jwks_uri"`
	}
	if err := c.ask(strings.TrimSuffix(issuer, "/")+"/.well-known/openid-configuration", &discovery); err != nil {
		return nil, err
	}
	if discovery.Issuer != issuer {
		return nil, errIssuerDisagrees
	}
	var keys jose.JSONWebKeySet
	if err := c.ask(discovery.JWKS, &keys); err != nil {
		return nil, err
	}
	found := keys.Key(parsed.Signatures[0].Header.KeyID)
	if len(found) == 0 {
		return nil, errNoKey
	}
	payload, err := parsed.Verify(found[0])
	if err != nil {
		return nil, errWrongSignature
	}
	return decodeClaims(payload)
}

// verify verifies a token that the issuer itself has to judge, and gives its claims. Its times are the caller's to judge.
func (i *Issuer) verify(token string) (map[string]any, error) {
	parsed, err := parseToken(token)
	if err != nil {
		return nil, errNotAToken
	}
	i.mu.Lock()
	found := i.keys.Key(parsed.Signatures[0].Header.KeyID)
	i.mu.Unlock()
	if len(found) == 0 {
		return nil, errNoKey
	}
	payload, err := parsed.Verify(found[0])
	if err != nil {
		return nil, errWrongSignature
	}
	return decodeClaims(payload)
}

// unverifiedClaims are a token's claims before anything is known of its signature.
func unverifiedClaims(token string) (map[string]any, error) {
	parsed, err := parseToken(token)
	if err != nil {
		return nil, errNotAToken
	}
	return decodeClaims(parsed.UnsafePayloadWithoutVerification())
}

func decodeClaims(payload []byte) (map[string]any, error) {
	var claims map[string]any
	if err := json.Unmarshal(payload, &claims); err != nil {
		return nil, errNotAToken
	}
	return claims, nil
}

// ask gets a JSON document from a host of the cloud, as one of its services would: it is in no log of requests.
func (c *Cloud) ask(address string, into any) error {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "https" {
		return errIssuerSilent
	}
	h := c.lookup(u.Host)
	if h == nil {
		return errIssuerSilent
	}
	r, err := http.NewRequestWithContext(unlogged(c.done), http.MethodGet, address, http.NoBody)
	if err != nil {
		return errIssuerSilent
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	if w.Code != http.StatusOK {
		return errIssuerSilent
	}
	if err := json.Unmarshal(w.Body.Bytes(), into); err != nil {
		return fmt.Errorf("%w: %w", errIssuerSilent, err)
	}
	return nil
}

// numericDate reads a claim that is a time (RFC 7519, section 2).
func numericDate(claims map[string]any, name string) (time.Time, bool) {
	n, ok := claims[name].(float64)
	return time.Unix(int64(n), 0), ok
}

// audiences are a token's, which RFC 7519 (section 4.1.3) lets be one string or several.
func audiences(claims map[string]any) []string {
	switch aud := claims["aud"].(type) {
	case string:
		return []string{aud}
	case []any:
		var all []string
		for _, a := range aud {
			if s, ok := a.(string); ok {
				all = append(all, s)
			}
		}
		return all
	}
	return nil
}
