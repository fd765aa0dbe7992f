// Prints the error of each ServiceMonitor of the array on standard input, or null, by the patterns and types of its CRD.
import { readFileSync } from "node:fs";
import { ServiceMonitor } from "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1/ServiceMonitor";

const errors = JSON.parse(readFileSync(0, "utf8")).map((monitor) => {
  try {
    new ServiceMonitor(monitor).validate();
    return null;
  } catch (error) {
    return String(error.message);
  }
});
console.log(JSON.stringify(errors));
