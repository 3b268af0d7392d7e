package testbed_test

import (
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/leasehold-go/leasehold/testbed/controlplane"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(controlplane.StopAfter(m), goleak.Cleanup(func(code int) {
		removeCLI()
		os.Exit(code)
	}))
}
