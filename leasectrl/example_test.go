package leasectrl_test

import (
	"context"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/leasehold-go/leasehold"
	"github.com/leasehold-go/leasehold/leasectrl"
	"github.com/leasehold-go/leasehold/leasetest"
)

// Two replicas of a controller share out four widgets. When one stops, the other reconciles what that had. In a program
// the controller is one of a manager, and lists from its cache: see the package's documentation.
func Example() {
	widgets := []string{"cog", "gear", "lever", "spring"}
	api := leasetest.NewServer() // to run anywhere
	reconciled := make(chan string, 8)
	replica := func(name string) (stop func() error) {
		ctx, cancel := context.WithCancel(context.Background())
		ring, err := leasehold.Join(ctx, 256,
			leasehold.WithLease("widgets"),
			leasehold.WithNamespace("default"),
			leasehold.WithIdentity(name),
			leasehold.WithRenewInterval(100*time.Millisecond), // so that this example is quick
			leasehold.WithClient(api.Client(name)),
		)
		if err != nil {
			panic(err)
		}
		reconciler := reconcile.Func(func(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
			s, _ := leasehold.FromContext(ctx) // of the widget's bucket; its token fences writes
			reconciled <- s.Holder().Identity
			return reconcile.Result{}, nil
		})
		c, err := controller.NewUnmanaged(name, controller.Options{Reconciler: leasectrl.Reconciler(ring, reconciler)})
		if err != nil {
			panic(err)
		}
		list := func(context.Context) (requests []reconcile.Request, err error) {
			for _, widget := range widgets {
				requests = append(requests, reconcile.Request{
					NamespacedName: types.NamespacedName{Namespace: "default", Name: widget},
				})
			}
			return requests, nil
		}
		if err := c.Watch(leasectrl.Source(ring, list)); err != nil {
			panic(err)
		}
		ended := make(chan error)
		go func() { ended <- c.Start(ctx) }()
		return func() error {
			cancel()
			<-ended
			return ring.Wait() // everything is given back
		}
	}
	count := func(n int) {
		by := map[string]int{}
		for range n {
			by[<-reconciled]++
		}
		fmt.Println(by)
	}

	stopFirst := replica("replica-1")
	count(4)
	stopSecond := replica("replica-2")
	count(2) // what moved to it
	fmt.Println("replica-1 stops:", stopFirst())
	count(2)
	fmt.Println("replica-2 stops:", stopSecond())
	// Output:
	// map[replica-1:4]
	// map[replica-2:2]
	// replica-1 stops: context canceled
	// map[replica-2:2]
	// replica-2 stops: context canceled
}
