// Command empty is the unit of cost: a Go program that does nothing.
package main

func main() {}
