package testbed_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/leasehold-go/leasehold/testbed/controlplane"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(controlplane.StopAfter(m)) }
