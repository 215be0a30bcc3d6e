package cloud

import (
	"strconv"
	"time"
)

// Container is an ECS or EKS Pod Identity credentials endpoint on loopback.
type Container struct{}

// Container starts a credentials endpoint that hands out the role's credentials.
func (c *Cloud) Container(roleARN string) *Container { return &Container{} }

// Environ points the SDKs to it, with the authorization token in a file (EKS Pod Identity).
func (k *Container) Environ() []string { return nil }

// EnvironToken is Environ with the token itself in the environment (ECS).
func (k *Container) EnvironToken() []string { return nil }

// TokenFile is the path of the file with the authorization token.
func (k *Container) TokenFile() string { return "" }

func formatSeconds(d time.Duration) string { return strconv.Itoa(int(d.Seconds())) }
