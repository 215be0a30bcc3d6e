package ecr

import (
	"cmp"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/internal/settings"
	"github.com/credential-broker/credential-broker/backends/webidentity"
)

// Config is the provider's `config`. All of it is optional: without any, the identity is that of the AWS SDK's default chain.
type Config struct {
	// RoleARN is the role that asks for the token, assumed with the identity of the node (or of WebIdentity); the three settings after it are those of a Role.
	RoleARN     string            `json:"roleARN"`
	ExternalID  string            `json:"externalID"`
	SessionName string            `json:"sessionName"`
	SessionTags map[string]string `json:"sessionTags"`
	// Via are roles to be assumed before, in this order, each with the identity of the one before it.
	Via []Role `json:"via"`
	// Roles are the roles for the registries of certain accounts, each in the place of RoleARN.
	Roles []AccountRole `json:"roles"`
	// WebIdentity proves who the node is by an identity token in place of AWS credentials; the first role is then assumed with it. For nodes outside AWS.
	WebIdentity webidentity.Config `json:"webIdentity"`
	// Profile is the profile of the shared configuration files to use. Default: AWS_PROFILE, or "default".
	Profile string `json:"profile"`

	// PodIdentity says whether the pod's service account token is used, where the provider has tokenAttributes: "Off", "Prefer" (the default: where the service account names a role, else
	// the node's identity) or "Require".
	PodIdentity settings.PodIdentity `json:"podIdentity"`
	// PodRoleARN is the role for pods whose service account has no annotation eks.amazonaws.com/ecr-role-arn. Default: AWS_ECR_ROLE_ARN.
	PodRoleARN string `json:"podRoleARN"`

	// Public says what to do about ECR Public: "anonymousFallback" (the default: pulls go on anonymously where the identity may not ask for a token, or there is none), "required", or "anonymous" (no
	// token is asked for).
	Public Public `json:"public"`
	// Scope is "registry" (the default), or "image" where a registry-wide answer would be wrong: the answer is then given for each image by itself.
	Scope Scope `json:"scope"`
	// RegistrySuffixes are further domains of private registries, for partitions that this version does not know: "amazonaws.example" makes
	// 123456789012.dkr.ecr.eu-example-1.amazonaws.example a registry whose API is at api.ecr.eu-example-1.amazonaws.example.
	RegistrySuffixes []string `json:"registrySuffixes"`

	// Endpoint is the URL of the ECR API, used as it is. Default: AWS_ENDPOINT_URL_ECR, AWS_ENDPOINT_URL, or the AWS endpoint of the registry's kind.
	Endpoint string `json:"endpoint"`
	// STSEndpoint is the URL of the STS API, used as it is. Default: AWS_ENDPOINT_URL_STS, AWS_ENDPOINT_URL, or the endpoint of the region.
	STSEndpoint string `json:"stsEndpoint"`
	// STSRegion is the region whose STS is asked. Default: the registry's.
	STSRegion string `json:"stsRegion"`
	// Proxy is the URL of the proxy for the AWS APIs. It takes the place of HTTPS_PROXY; NO_PROXY still holds. Metadata services are never asked through a proxy.
	Proxy backends.Secret `json:"proxy"`
}

// Role is a role to assume.
type Role struct {
	// RoleARN is the role: arn:aws:iam::123456789012:role/name.
	RoleARN string `json:"roleARN"`
	// ExternalID is what the role's trust policy may ask for.
	ExternalID string `json:"externalID"`
	// SessionName appears in CloudTrail: 2 to 64 letters, digits and any of _=,.@-. Default: "credential-broker".
	SessionName string `json:"sessionName"`
	// SessionTags are passed to AssumeRole; the trust policy must allow sts:TagSession.
	SessionTags map[string]string `json:"sessionTags"`
}

// AccountRole is the role for the registries of some accounts.
type AccountRole struct {
	// Accounts are AWS account ids, 12 digits each.
	Accounts    []string          `json:"accounts"`
	RoleARN     string            `json:"roleARN"`
	ExternalID  string            `json:"externalID"`
	SessionName string            `json:"sessionName"`
	SessionTags map[string]string `json:"sessionTags"`
}

// Public is what is done about ECR Public.
type Public string

// What can be done.
const (
	PublicAnonymousFallback Public = "anonymousFallback"
	PublicRequired          Public = "required"
	PublicAnonymous         Public = "anonymous"
)

// Scope is how far an answer is to hold.
type Scope string

// The scopes.
const (
	ScopeRegistry Scope = "registry"
	ScopeImage    Scope = "image"
)

// consistsOf reports whether s has from least to most bytes, all of them ASCII letters, digits, or in also. (Regular expressions would have to be compiled in each process.)
func consistsOf(s, also string, least, most int) bool {
	return len(s) >= least && len(s) <= most && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune(also, r)
	})
}

// The limits are those of the API references of IAM and STS.

func validRoleARN(s string) bool {
	parts := strings.SplitN(s, ":", 6)
	return len(parts) == 6 && parts[0] == "arn" && strings.HasPrefix(parts[1], "aws") && consistsOf(parts[1], "-", 3, 20) && parts[2] == "iam" && parts[3] == "" && validAccount(parts[4]) &&
		strings.HasPrefix(parts[5], "role/") && consistsOf(strings.TrimPrefix(parts[5], "role/"), "_+=,.@/-", 1, 577)
}

func validAccount(s string) bool {
	return consistsOf(s, "", 12, 12) && strings.Trim(s, "0123456789") == ""
}
func validSessionName(s string) bool { return consistsOf(s, "_+=,.@-", 2, maxSessionName) }
func validExternalID(s string) bool  { return consistsOf(s, "_+=,.@:/-", 2, 1224) }

func validRegion(s string) bool {
	return consistsOf(s, "-", 1, 63) && strings.ToLower(s) == s && s[0] != '-' && s[len(s)-1] != '-'
}

// validSuffix: a domain of at least two labels, and a port or none.
func validSuffix(s string) bool {
	name, port, hasPort := strings.Cut(s, ":")
	labels := strings.Split(name, ".")
	return len(labels) > 1 && !slices.ContainsFunc(labels, func(label string) bool { return !validRegion(label) }) && (!hasPort || len(port) <= 5 && consistsOf(port, "", 1, 5) && strings.Trim(port, "0123456789") == "")
}

// withDefaults fills in what was left out.
func (c *Config) withDefaults() Config {
	full := *c
	full.PodIdentity = cmp.Or(c.PodIdentity, settings.PodIdentityPrefer)
	full.Public = cmp.Or(c.Public, PublicAnonymousFallback)
	full.Scope = cmp.Or(c.Scope, ScopeRegistry)
	return full
}

// role is the one of the top level.
func (c *Config) role() Role {
	return Role{RoleARN: c.RoleARN, ExternalID: c.ExternalID, SessionName: c.SessionName, SessionTags: c.SessionTags}
}

func (a *AccountRole) role() Role {
	return Role{RoleARN: a.RoleARN, ExternalID: a.ExternalID, SessionName: a.SessionName, SessionTags: a.SessionTags}
}

// chain is the roles to assume, in order, for a registry of the account.
func (c *Config) chain(account string) []Role {
	chain := slices.Clone(c.Via)
	for _, r := range c.Roles {
		if slices.Contains(r.Accounts, account) {
			return append(chain, r.role())
		}
	}
	if c.RoleARN != "" {
		chain = append(chain, c.role())
	}
	return chain
}

// validate finds every problem of a Config that has its defaults.
func (c *Config) validate() error {
	var problems []error
	problem := func(field, format string, args ...any) {
		problems = append(problems, backends.InvalidConfig(field, format, args...))
	}
	oneOf := func(field, got string, known ...string) {
		if !slices.Contains(known, got) {
			problem(field, "want one of %q, got %q", known, got)
		}
	}
	oneOf("podIdentity", string(c.PodIdentity), string(settings.PodIdentityOff), string(settings.PodIdentityPrefer), string(settings.PodIdentityRequire))
	oneOf("public", string(c.Public), string(PublicAnonymousFallback), string(PublicRequired), string(PublicAnonymous))
	oneOf("scope", string(c.Scope), string(ScopeRegistry), string(ScopeImage))

	if c.RoleARN != "" || c.ExternalID != "" || c.SessionName != "" || len(c.SessionTags) > 0 {
		problems = append(problems, c.role().validate(""))
	}
	for i, r := range c.Via {
		problems = append(problems, r.validate(fmt.Sprintf("via[%d].", i)))
	}
	seen := map[string]string{}
	for i, r := range c.Roles {
		field := fmt.Sprintf("roles[%d].", i)
		problems = append(problems, r.role().validate(field))
		if len(r.Accounts) == 0 {
			problem(field+"accounts", "want the accounts whose registries this role is for")
		}
		for j, account := range r.Accounts {
			at := fmt.Sprintf("%saccounts[%d]", field, j)
			switch {
			case !validAccount(account):
				problem(at, "want an account id of 12 digits, got %q (in quotes, lest leading zeros be lost)", account)
			case seen[account] != "":
				problem(at, "account %s has a role already, by %s", account, seen[account])
			default:
				seen[account] = at
			}
		}
	}
	if c.PodRoleARN != "" && !validRoleARN(c.PodRoleARN) {
		problem("podRoleARN", "want a role such as arn:aws:iam::123456789012:role/name, got %q", c.PodRoleARN)
	}
	if !c.WebIdentity.IsZero() {
		problems = append(problems, c.WebIdentity.Validate("webIdentity", webSources), c.validateFirstHop())
	}
	for i, suffix := range c.RegistrySuffixes {
		if !validSuffix(suffix) {
			problem(fmt.Sprintf("registrySuffixes[%d]", i), "want a domain in lower case, such as amazonaws.example, got %q", suffix)
		}
	}
	problems = append(problems, validURL("endpoint", c.Endpoint), validURL("stsEndpoint", c.STSEndpoint))
	if c.STSRegion != "" && !validRegion(c.STSRegion) {
		problem("stsRegion", "want a region such as eu-west-1, got %q", c.STSRegion)
	}
	if c.Proxy != "" {
		if u, err := url.Parse(string(c.Proxy)); err != nil || u.Host == "" || !slices.Contains([]string{"http", "https", "socks5"}, u.Scheme) {
			problem("proxy", "want a URL such as http://proxy.example:3128") // it may hold a password
		}
	}
	return errors.Join(problems...)
}

// validateFirstHop: an identity token is worth nothing without a role, and AssumeRoleWithWebIdentity takes neither an external id nor tags.
func (c *Config) validateFirstHop() error {
	var problems []error
	first := func(field string, r Role) {
		if r.ExternalID != "" {
			problems = append(problems, backends.InvalidConfig(field+"externalID", "the first role is assumed with webIdentity, and AssumeRoleWithWebIdentity takes no external id: remove it, or put a role before it into `via`"))
		}
		if len(r.SessionTags) > 0 {
			problems = append(problems, backends.InvalidConfig(field+"sessionTags", "the first role is assumed with webIdentity, and AssumeRoleWithWebIdentity takes no tags: remove them, or put a role before it into `via`"))
		}
	}
	switch {
	case len(c.Via) > 0:
		first("via[0].", c.Via[0])
	case c.RoleARN == "" && len(c.Roles) == 0:
		problems = append(problems, backends.InvalidConfig("roleARN", "webIdentity needs a role to assume: name it here, or in `via` or `roles`"))
	default:
		if c.RoleARN != "" {
			first("", c.role())
		}
		for i, r := range c.Roles {
			first(fmt.Sprintf("roles[%d].", i), r.role())
		}
	}
	return errors.Join(problems...)
}

// validate finds what STS would not take. Field is what comes before the names of the role's own fields.
func (r Role) validate(field string) error {
	var problems []error
	if !validRoleARN(r.RoleARN) {
		problems = append(problems, backends.InvalidConfig(field+"roleARN", "want a role such as arn:aws:iam::123456789012:role/name, got %q", r.RoleARN))
	}
	if r.ExternalID != "" && !validExternalID(r.ExternalID) {
		problems = append(problems, backends.InvalidConfig(field+"externalID", "want 2 to 1224 letters, digits and any of _+=,.@:/-"))
	}
	if r.SessionName != "" && !validSessionName(r.SessionName) {
		problems = append(problems, backends.InvalidConfig(field+"sessionName", "want 2 to 64 letters, digits and any of _+=,.@-, got %q", r.SessionName))
	}
	if len(r.SessionTags) > 50 {
		problems = append(problems, backends.InvalidConfig(field+"sessionTags", "STS takes at most 50 tags, these are %d", len(r.SessionTags)))
	}
	for name, value := range r.SessionTags {
		if name == "" || len(name) > 128 || len(value) > 256 {
			problems = append(problems, backends.InvalidConfig(field+"sessionTags", "tag %q: a name has 1 to 128 characters and a value at most 256", name))
		}
	}
	return errors.Join(problems...)
}

func validURL(field, s string) error {
	if s == "" {
		return nil
	}
	if u, err := url.Parse(s); err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" || u.User != nil || u.RawQuery != "" {
		return backends.InvalidConfig(field, "want a URL such as https://vpce-1.api.ecr.eu-west-1.vpce.amazonaws.com, without user, password or query")
	}
	return nil
}
