package vault

// AWS is the login by an AWS identity.
type AWS struct{}

// GCP is the login by a Google identity.
type GCP struct{}

// Azure is the login by an Azure identity.
type Azure struct{}
