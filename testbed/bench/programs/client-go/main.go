// Command client-go is a program that leads by client-go's LeaderElector and does nothing else. bench weighs it.
package main

import (
	"context"
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	coordinationv1client "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/leasehold-go/leasehold/testbed/bench/programs/config"
)

func main() {
	cfg, lease := config.Read()
	client, err := coordinationv1client.NewForConfig(cfg)
	if err != nil {
		config.Exit(err)
	}
	leaderelection.RunOrDie(context.Background(), leaderelection.LeaderElectionConfig{
		Lock: &resourcelock.LeaseLock{
			LeaseMeta:  metav1.ObjectMeta{Namespace: "default", Name: lease},
			Client:     client,
			LockConfig: resourcelock.ResourceLockConfig{Identity: "weighed"},
		},
		LeaseDuration: 15 * time.Second, RenewDeadline: 10 * time.Second, RetryPeriod: 2 * time.Second,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(context.Context) { fmt.Println(config.Ready) },
			OnStoppedLeading: func() {},
		},
	})
}
