// Command leasehold is a program that leads by leasehold's WithRESTConfig and does nothing else. bench weighs it.
package main

import (
	"context"
	"fmt"

	"github.com/leasehold-go/leasehold"
	"github.com/leasehold-go/leasehold/testbed/bench/programs/config"
)

func main() {
	cfg, lease := config.Read()
	for s := range leasehold.Sessions(context.Background(),
		leasehold.WithRESTConfig(cfg), leasehold.WithNamespace("default"), leasehold.WithLease(lease),
	) {
		fmt.Println(config.Ready)
		<-s.Done()
	}
}
