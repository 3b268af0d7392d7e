package testbed_test

import (
	"flag"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/leasehold-go/leasehold/testbed/controlplane"
)

var long = flag.Bool("long", false, "try all exit codes in TestRunExitCodes, and build kubectl in TestKubectl")

func TestMain(m *testing.M) {
	if spec := os.Getenv(replicaEnv); spec != "" {
		os.Exit(runReplica(spec))
	}
	if err := flag.Set("test.parallel", "8"); err != nil { // most of them wait; -test.parallel overrides this
		panic(err)
	}
	goleak.VerifyTestMain(controlplane.StopAfter(m), goleak.Cleanup(func(code int) {
		removeCLI()
		os.Exit(code)
	}))
}
