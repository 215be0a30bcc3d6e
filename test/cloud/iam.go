package cloud

import (
	"path"
	"regexp"
	"strings"
	"time"
)

// Keys are AWS credentials.
type Keys struct{ AccessKeyID, SecretAccessKey, SessionToken string }

// Environ is the environment that carries them.
func (k Keys) Environ() []string {
	e := []string{"AWS_ACCESS_KEY_ID=" + k.AccessKeyID, "AWS_SECRET_ACCESS_KEY=" + k.SecretAccessKey}
	if k.SessionToken != "" {
		e = append(e, "AWS_SESSION_TOKEN="+k.SessionToken)
	}
	return e
}

// Role is an IAM role.
type Role struct {
	ARN    string
	Trust  []Trust
	Policy []Statement
	// MaxSession is how long a session may last. 0: an hour.
	MaxSession time.Duration
}

// Trust is a statement of a role's trust policy: who may assume it. Either AWS or Federated is set; "*" and "?" in a condition stand for any characters, and any one.
type Trust struct {
	// AWS is a principal's ARN, or an account (ID or root ARN), whose own policies then decide. "*": any.
	AWS string
	// ExternalID is the sts:ExternalId that the request must have. Empty: any or none.
	ExternalID string
	// Federated is the issuer's URL.
	Federated string
	// Audience is the condition on the issuer's "aud" key, which is the token's azp where it has one, and its aud where it has none.
	Audience string
	// Subject is the condition on the issuer's "sub" key.
	Subject string
	// AuthorizedParty is what Audience is, for a token with azp only.
	AuthorizedParty string
	// OriginalAudience is the condition on the "oaud" key, the token's aud, which only Google's tokens have.
	OriginalAudience string
	// Tags: sts:TagSession is allowed as well.
	Tags bool
}

// Statement allows actions on resources; both may have "*" and "?". What no statement allows is denied. No resources: all.
type Statement struct{ Actions, Resources []string }

// PullPolicy is what a principal needs to pull from private registries (and no more than AmazonEC2ContainerRegistryPullOnly allows, but for the import of upstream images).
func PullPolicy() []Statement {
	return []Statement{{Actions: []string{"ecr:GetAuthorizationToken", "ecr:BatchCheckLayerAvailability", "ecr:GetDownloadUrlForLayer", "ecr:BatchGetImage"}}}
}

// PublicPolicy is what a principal needs for a token of ECR Public.
func PublicPolicy() []Statement {
	return []Statement{{Actions: []string{"ecr-public:GetAuthorizationToken", "sts:GetServiceBearerToken"}}}
}

// iam is all that AWS knows of identities.
type iam struct {
	roles     map[string]*Role                    // by ARN
	users     map[string][]Statement              // by ARN
	keys      map[string]*accessKey               // by access key ID
	providers map[string]map[string]*oidcProvider // by account ("aws/123456789012"), then issuer without scheme
	issuing   map[string]*Issuer                  // of accounts that may issue tokens, as providers
	passwords map[string]*password                // of registries
	bearers   map[string]bool                     // tokens of ECR Public's token endpoint
	sso       map[string]ssoSession               // by access token
}

func (c *Cloud) startAWS() {
	c.aws = iam{
		roles: map[string]*Role{}, users: map[string][]Statement{}, keys: map[string]*accessKey{}, providers: map[string]map[string]*oidcProvider{},
		issuing: map[string]*Issuer{}, passwords: map[string]*password{}, bearers: map[string]bool{}, sso: map[string]ssoSession{},
	}
	c.startPublicRegistry()
}

// accessKey is a pair of keys, with a session token where they are temporary.
type accessKey struct {
	Keys
	principal
}

// principal is who asks.
type principal struct {
	arn    string // of the user, or of the role's session
	userID string
	role   string      // the role's ARN, if this is a session of one
	bound  []Statement // session policy; nil: none
	tags   map[string]string
	// expires is when the session does, or the zero time: the user's keys do not.
	expires time.Time
}

type oidcProvider struct{ audiences []string }

// arn has the parts of an ARN.
type arn struct{ partition, service, account, resource string }

var arnPattern = regexp.MustCompile(`^arn:(aws[a-z-]*):([a-z0-9-]+):[a-z0-9-]*:(\d{12}|):(.+)$`)

func parseARN(s string) (arn, bool) {
	m := arnPattern.FindStringSubmatch(s)
	if m == nil {
		return arn{}, false
	}
	return arn{m[1], m[2], m[3], m[4]}, true
}

func (p principal) partition() string { a, _ := parseARN(p.arn); return a.partition }
func (p principal) account() string   { a, _ := parseARN(p.arn); return a.account }

// AddUser makes an IAM user, or replaces its policy, and gives it long-term keys.
func (c *Cloud) AddUser(userARN string, p ...Statement) Keys {
	k := Keys{AccessKeyID: "AKIA" + random(16), SecretAccessKey: random(40)}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.aws.users[userARN] = p
	c.aws.keys[k.AccessKeyID] = &accessKey{Keys: k, principal: principal{arn: userARN, userID: "AIDA" + random(17)}}
	return k
}

// DeactivateKey makes a key unknown from now on, whosever it is.
func (c *Cloud) DeactivateKey(accessKeyID string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.aws.keys, accessKeyID)
}

// AddRole makes an IAM role, or replaces it; sessions that it has have its new policy.
func (c *Cloud) AddRole(r Role) {
	if r.MaxSession == 0 {
		r.MaxSession = time.Hour
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.aws.roles[r.ARN] = &r
}

// Session gives a session of a role, without anybody's having assumed it: as EC2, ECS and the like get theirs.
func (c *Cloud) Session(roleARN, name string, life time.Duration) Keys {
	return c.session(roleARN, name, life, nil, nil).Keys
}

// session makes temporary keys.
func (c *Cloud) session(roleARN, name string, life time.Duration, bound []Statement, tags map[string]string) *accessKey {
	a, _ := parseARN(roleARN)
	now := c.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	id := "AROA" + random(17)
	k := &accessKey{
		Keys: Keys{AccessKeyID: "ASIA" + random(16), SecretAccessKey: random(40), SessionToken: "IQoJb3JpZ2luX2Vj" + random(400)},
		principal: principal{
			arn: "arn:" + a.partition + ":sts::" + a.account + ":assumed-role/" + path.Base(a.resource) + "/" + name, userID: id + ":" + name, role: roleARN, bound: bound, tags: tags,
			expires: now.Add(life).Truncate(time.Second),
		},
	}
	c.aws.keys[k.AccessKeyID] = k
	return k
}

// AddOIDCProvider makes an OIDC issuer known to an account ("123456789012", or its root ARN for an account outside the aws partition), with the audiences (client IDs) that it accepts.
func (c *Cloud) AddOIDCProvider(account, issuerURL string, audiences ...string) {
	key := accountKey(account)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.aws.providers[key] == nil {
		c.aws.providers[key] = map[string]*oidcProvider{}
	}
	c.aws.providers[key][withoutScheme(issuerURL)] = &oidcProvider{audiences}
}

// accountKey is "aws/123456789012" of an account's ID or root ARN.
func accountKey(account string) string {
	if a, ok := parseARN(account); ok {
		return a.partition + "/" + a.account
	}
	return "aws/" + account
}

func withoutScheme(url string) string { return strings.TrimPrefix(url, "https://") }

// may says whether a principal's own policies allow an action.
func (c *Cloud) may(p principal, action, resource string) bool {
	c.mu.Lock()
	policy := c.aws.users[p.arn]
	if p.role != "" {
		policy = nil
		if r := c.aws.roles[p.role]; r != nil {
			policy = r.Policy
		}
	}
	c.mu.Unlock()
	return allows(policy, action, resource) && (p.bound == nil || allows(p.bound, action, resource))
}

func allows(policy []Statement, action, resource string) bool {
	for _, s := range policy {
		if anyMatches(s.Actions, strings.ToLower(action), true) && (len(s.Resources) == 0 || anyMatches(s.Resources, resource, false)) {
			return true
		}
	}
	return false
}

func anyMatches(patterns []string, s string, lower bool) bool {
	for _, p := range patterns {
		if lower {
			p = strings.ToLower(p)
		}
		if globMatches(p, s) {
			return true
		}
	}
	return false
}

// globMatches is IAM's StringLike: "*" is any number of any characters, "?" any one.
func globMatches(pattern, s string) bool {
	expression := regexp.QuoteMeta(pattern)
	expression = strings.ReplaceAll(strings.ReplaceAll(expression, `\*`, `.*`), `\?`, `.`)
	ok, err := regexp.MatchString(`(?s)^`+expression+`$`, s)
	return ok && err == nil
}

// how a trust statement, or a repository's policy, names somebody.
type naming int

const (
	notNamed naming = iota
	namedByAccount
	namedDirectly
)

// names says how an entry of a policy (an ARN, an account's ID or root ARN, or "*") names a principal.
func names(entry string, p principal) naming {
	switch {
	case entry == "":
		return notNamed
	case entry == p.arn || entry == p.role:
		return namedDirectly
	case entry == "*" || entry == p.account() || entry == "arn:"+p.partition()+":iam::"+p.account()+":root":
		return namedByAccount
	}
	return notNamed
}
