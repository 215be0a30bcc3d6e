package cloud

// Issuer is an OIDC issuer with discovery document and key set under its real name.
type Issuer struct{ url string }

// AddIssuer makes an issuer. The URL is https; a path is fine.
func (c *Cloud) AddIssuer(url string) *Issuer { return &Issuer{url} }

// Token is a JWT signed by the issuer (RS256). iss, iat and exp (an hour) are filled in unless claims has them; a nil value leaves a claim out.
func (i *Issuer) Token(claims map[string]any) string { return "" }
