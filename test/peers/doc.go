// Package peers sets the broker beside the official providers, with the same requests, the same environment and the same fake cloud: what each answers, what each tells of a failure, and
// what it costs. There is nothing here to import.
//
// The peers are modules of their own below this one (cloud-provider-aws, ecr-login, gcr, ec2-metadata-mock), each of which pins one of them as a tool: so each is built with the versions
// it was released with, which ours would raise.
package peers
