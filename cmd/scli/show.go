// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"braid/cluster"
	"braid/cmd/internal/cli"
	"braid/mdm/client"
	"braid/mdm/pb"
)

type server struct {
	Name     string   `json:"name"`
	Addr     string   `json:"addr"`
	FaultSet string   `json:"fault_set"`
	Up       bool     `json:"up"`
	Devices  []uint32 `json:"devices"`
	Capacity uint64   `json:"capacity"`
	Used     uint64   `json:"used"`
	Version  string   `json:"version"`
}

func (a *app) sdsCommand() *cobra.Command {
	list := &cobra.Command{
		Use:   "list",
		Short: "List the data servers",
		Args:  cli.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.ask(c, func(ctx context.Context, mdm *client.Client) error {
				found, err := mdm.ListServers(ctx)
				if err != nil {
					return err
				}
				servers, rows := []server{}, [][]string{}
				for _, m := range found {
					s := server{Name: m.Name, Addr: m.Addr, FaultSet: m.FaultSet, Up: m.Up,
						Devices: append([]uint32{}, m.Devices...), Capacity: m.Capacity, Used: m.Used,
						Version: m.Version}
					servers = append(servers, s)
					rows = append(rows, []string{s.Name, upDown(s.Up), s.Addr, s.FaultSet,
						fmt.Sprint(len(s.Devices)), size(s.Capacity), size(s.Used), percent(s.Used, s.Capacity),
						orDash(s.Version)})
				}
				if a.json() {
					return a.printJSON(servers)
				}
				printTable(a.out, []string{"NAME", "STATE", "ADDRESS", "FAULT SET", ">DEVICES",
					">SIZE", ">USED", ">USE", "VERSION"}, rows)
				return nil
			})
		},
	}
	return group("sds", "Show, remove and maintain data servers", list, a.sdsRemoveCommand(), a.maintenanceCommand())
}

func upDown(up bool) string {
	if up {
		return "up"
	}
	return "down"
}

type device struct {
	ID           uint32 `json:"id"`
	UUID         string `json:"uuid"`
	Server       string `json:"server"`
	Addr         string `json:"addr"`
	FaultSet     string `json:"fault_set"`
	Path         string `json:"path"`
	Size         uint64 `json:"size"`
	Used         uint64 `json:"used"`
	Up           bool   `json:"up"`
	Failed       string `json:"failed"`
	Removing     bool   `json:"removing"`
	Spare        bool   `json:"spare"`
	Incarnation  string `json:"incarnation"` // as text: 64 bits are more than JSON's numbers hold
	StartCounter uint64 `json:"start_counter"`
}

func (a *app) deviceCommand() *cobra.Command {
	list := &cobra.Command{
		Use:   "list",
		Short: "List the devices",
		Args:  cli.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.ask(c, func(ctx context.Context, mdm *client.Client) error {
				found, err := mdm.ListDevices(ctx)
				if err != nil {
					return err
				}
				return a.showDevices(found)
			})
		},
	}
	return group("device", "Show, spare and remove devices", list, a.deviceSpareCommand(), a.deviceRemoveCommand())
}

func (a *app) removeAtOnce(ctx context.Context, mdm *client.Client, ids []uint32) error {
	for _, id := range ids {
		if err := mdm.RemoveDevice(ctx, cluster.DeviceID(id), true); err != nil {
			return err
		}
		if a.json() {
			if err := a.printJSON(map[string]any{"id": id, "state": "removed"}); err != nil {
				return err
			}
			continue
		}
		fmt.Fprintf(a.out, "device %d removed\n", id)
	}
	return nil
}

func (a *app) showDevices(found []*pb.Device) error {
	devices, rows := []device{}, [][]string{}
	for _, m := range found {
		d := device{ID: m.Id, UUID: uuidText(m.Uuid), Server: m.Server, Addr: m.Addr, FaultSet: m.FaultSet,
			Path: m.Path, Size: m.Size, Used: m.Used, Up: m.Up, Failed: m.Failed, Removing: m.Removing, Spare: m.Spare,
			Incarnation: fmt.Sprintf("%016x", m.Incarnation), StartCounter: m.StartCounter}
		devices = append(devices, d)
		state := upDown(d.Up)
		if d.Failed != "" {
			state = "failed: " + d.Failed
		}
		if d.Spare {
			state = "spare, " + state
		}
		rows = append(rows, []string{fmt.Sprint(d.ID), d.Server, d.Path, d.FaultSet, size(d.Size), size(d.Used),
			percent(d.Used, d.Size), state})
	}
	if a.json() {
		return a.printJSON(devices)
	}
	printTable(a.out, []string{">ID", "SERVER", "PATH", "FAULT SET", ">SIZE", ">USED", ">USE", "STATE"}, rows)
	return nil
}
