package cloud

import "time"

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

// Trust is a statement of a role's trust policy: who may assume it. Either AWS or Federated is set; "*" in a condition stands for any characters.
type Trust struct {
	// AWS is a principal's ARN, or an account (ID or root ARN), whose own policies then decide.
	AWS string
	// ExternalID is the sts:ExternalId that the request must have. Empty: any or none.
	ExternalID string
	// Federated is the issuer's URL.
	Federated string
	// Audience, Subject and AuthorizedParty are conditions on the issuer's aud, sub and azp keys.
	Audience, Subject, AuthorizedParty string
	// Tags: sts:TagSession is allowed as well.
	Tags bool
}

// Statement allows actions on resources; both may have "*" and "?". What no statement allows is denied. No resources: all.
type Statement struct{ Actions, Resources []string }

type iam struct{}

func (c *Cloud) startAWS() {}

// AddUser makes an IAM user and gives its long-term keys.
func (c *Cloud) AddUser(arn string, p ...Statement) Keys { return Keys{} }

// AddRole makes an IAM role, or replaces it.
func (c *Cloud) AddRole(r Role) {}

// AddOIDCProvider makes an OIDC issuer known to an account ("123456789012", or its root ARN for an account outside the aws partition), with the audiences (client IDs) that it accepts.
func (c *Cloud) AddOIDCProvider(account, issuerURL string, audiences ...string) {}
